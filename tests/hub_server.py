"""
A small Hub on loopback: creates repositories, takes commits with regular and large files, and gives files back.

It speaks the part of the Hub's HTTP interface that the real `huggingface_hub` client uses for these, and can be told to
drop connections.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

TOKENS = {"hf_owner": "owner", "hf_digit": "01-owner", "hf_reader": "reader"}  # the last one may read only


class HubServer:
    """Repositories as `{repo_id: {commit: {path: content}}}`; `heads` names each branch's last commit."""

    def __init__(self):
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.heads: dict[str, dict[str, str]] = {}
        self.private: set[str] = set()
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.drop: str | None = None  # a pattern: requests that match get half an answer, or none
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        commit = self.heads[repo_id].get(revision, revision)
        return self.repositories[repo_id][commit]

    def commit(self, repo_id: str, branch: str, files: dict[str, bytes], deleted: tuple[str, ...] = ()) -> str:
        parent = self.heads[repo_id].get(branch)
        content = {**(self.repositories[repo_id][parent] if parent else {}), **files}
        content = {path: held for path, held in content.items() if path not in deleted}
        digest = hashlib.sha1(repr((parent, sorted(content.items()))).encode()).hexdigest()
        self.repositories[repo_id][digest] = content
        self.heads[repo_id][branch] = digest
        return digest

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: HubServer

    def log_message(self, *args):
        pass

    def do_POST(self):
        self.answer("POST")

    def do_PUT(self):
        self.answer("PUT")

    def do_GET(self):
        self.answer("GET")

    def do_HEAD(self):
        self.answer("HEAD")

    def answer(self, method: str):
        hub, path = self.server_hub, unquote(urlparse(self.path).path)
        hub.requests.append(f"{method} {path}")
        if hub.drop and re.search(hub.drop, f"{method} {path}"):
            self.rfile.read(min(1000, int(self.headers.get("Content-Length") or 0)))
            self.close_connection = True
            self.connection.close()
            return
        body = self.read_body()
        for pattern, action in (
            (r"POST /api/repos/create", self.create),
            (r"POST /api/(?:models|spaces)/(.+)/preupload/(.+)", self.preupload),
            (r"POST /(.+)\.git/info/lfs/objects/batch", self.batch),
            (r"PUT /large/(.+)", self.take_large),
            (r"POST /api/(?:models|spaces)/(.+)/commit/(.+)", self.take_commit),
            (r"POST /api/models/(.+)/branch/(.+)", self.branch),
            (r"GET /api/models/(.+)/auth-check/write", self.check),
            (r"GET /api/(?:models|spaces|datasets)/([^/]+/[^/]+)", self.info),
            (r"GET /api/(?:models|spaces|datasets)/(.+)/revision/(.+)", self.info),
            (r"GET /api/(?:models|spaces|datasets)/(.+)/tree/([^/]+)/?.*", self.tree),
            (r"POST /api/datasets/(.+)/paths-info/(.+)", self.tree),
            (r"(?:GET|HEAD) /(?:spaces/|datasets/)?(.+)/resolve/([^/]+)/(.+)", self.resolve),
            (r"GET /api/whoami-v2", lambda body: self.send({"name": self.user(), "type": "user"})),
            (r"POST /api/validate-yaml", lambda body: self.send({"errors": [], "warnings": []})),
        ):
            match = re.fullmatch(pattern, f"{method} {path}")
            if match:
                return action(body, *match.groups())
        self.send({"error": f"no such route: {method} {path}"}, 404)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def send(self, content, status: int = 200, **headers: str):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def user(self) -> str | None:
        return TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def may_write(self, owner: str) -> bool:
        """Whether the token is known and the owner's; answers the request where it is not."""
        if self.user() is None:
            self.send({"error": "Invalid username or password."}, 401)
        elif self.user() != owner:
            self.send({"error": f"You don't have the rights to write under the namespace {owner}"}, 403)
        return self.user() == owner

    def create(self, body: bytes):
        hub, wanted = self.server_hub, json.loads(body)
        owner = wanted.get("organization") or self.user() or "?"
        if self.user() == "reader":
            return self.send({"error": "You don't have the rights to create a model"}, 403)
        if not self.may_write(owner):
            return None
        repo_id = f"{owner}/{wanted['name']}"
        if repo_id in hub.repositories:
            return self.send({"error": "You already created this model repo", "url": f"/{repo_id}"}, 409)
        hub.repositories[repo_id], hub.heads[repo_id] = {}, {}
        hub.private |= {repo_id} if wanted.get("visibility") == "private" else set()
        hub.commit(repo_id, "main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self.send({"url": f"{hub.endpoint}/{repo_id}", "name": repo_id})

    def check(self, body: bytes, repo_id: str):
        if self.may_write(repo_id.split("/")[0]):
            self.send({})

    def branch(self, body: bytes, repo_id: str, branch: str):
        if self.may_write(repo_id.split("/")[0]) and (commit := self.found(repo_id, "main")):
            self.server_hub.heads[repo_id][branch] = commit
            self.send({})

    def preupload(self, body: bytes, repo_id: str, revision: str):
        if self.may_write(repo_id.split("/")[0]) and self.found(repo_id, revision):
            files = json.loads(body)["files"]
            modes = {
                file["path"]: "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular" for file in files
            }
            self.send(
                {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]}
            )

    def batch(self, body: bytes, repo_id: str):
        if self.may_write(repo_id.split("/")[0]):
            href = f"{self.server_hub.endpoint}/large/"
            objects = [
                {**item, "actions": {"upload": {"href": href + item["oid"]}}} for item in json.loads(body)["objects"]
            ]
            self.send({"transfer": "basic", "objects": objects})

    def take_large(self, body: bytes, oid: str):
        if hashlib.sha256(body).hexdigest() != oid:
            return self.send({"error": "not what was announced"}, 400)
        self.server_hub.large[oid] = body
        return self.send(b"")

    def take_commit(self, body: bytes, repo_id: str, revision: str):
        if not (self.may_write(repo_id.split("/")[0]) and self.found(repo_id, revision)):
            return None
        files, deleted = {}, []
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server_hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                deleted.append(value["path"])
        commit = self.server_hub.commit(repo_id, revision, files, tuple(deleted))
        url = f"{self.server_hub.endpoint}/{repo_id}/commit/{commit}"
        return self.send({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def found(self, repo_id: str, revision: str) -> str | None:
        """The commit of a revision; answers the request where there is none."""
        hub = self.server_hub
        commit = hub.heads.get(repo_id, {}).get(revision, revision)
        if repo_id not in hub.repositories:
            self.send({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif commit not in hub.repositories[repo_id]:
            self.send({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
        else:
            return commit
        return None

    def info(self, body: bytes, repo_id: str, revision: str = "main"):
        if commit := self.found(repo_id, revision):
            names = [{"rfilename": path} for path in self.server_hub.repositories[repo_id][commit]]
            self.send(
                {
                    "id": repo_id,
                    "sha": commit,
                    "siblings": names,
                    "private": repo_id in self.server_hub.private,
                    "tags": [],
                }
            )

    def tree(self, body: bytes, repo_id: str, revision: str):
        if commit := self.found(repo_id, revision):
            self.send(
                [
                    {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for path, content in self.server_hub.repositories[repo_id][commit].items()
                ]
            )

    def resolve(self, body: bytes, repo_id: str, revision: str, path: str):
        commit = self.found(repo_id, revision)
        if commit is None:
            return None
        content = self.server_hub.repositories[repo_id][commit].get(path)
        if content is None:
            return self.send({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        return self.send(content, X_Repo_Commit=commit, ETag=f'"{hashlib.sha256(content).hexdigest()}"')
