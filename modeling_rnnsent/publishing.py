"""A finished run's directory on the Hub, and one clear line for what can go wrong on the way."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.constants import REPOCARD_NAME
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RevisionNotFoundError

from .arguments import RNNSentTrainingArguments
from .card import REPORTS
from .checkpoints import METRICS
from .errors import InputError

# Of the library that the client sends requests by, which is httpx or its successor.
HTTPError = HfHubHTTPError.__bases__[0]
NOTHING_TRAINED = (
    "Nothing has been trained yet. Without --push_to_hub it will be, and with it the same command then uploads it."
)
# Checkpoints, the lock and the like are the run's own.
IGNORED = ["checkpoint-*", "_*", ".*"]


def publish(
    folder: str,
    repo_id: str | None = None,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "End of training",
):
    """
    Uploads a trained directory as it stands, in one commit: weights, tokenizer, code, card and pictures. The same one
    removes the results and pictures of an earlier run that this one has not.

    Args:
        folder (`str`): The directory.
        repo_id (`str`, *optional*): `NAME` or `OWNER/NAME`; created where there is none. None: the directory's name.
        token (`str`, *optional*): A token that may write. None: the one of `hf auth login`.
        private (`bool`, *optional*): Whether a new repository is private. None: as its owner has set.
        revision (`str`, *optional*): Branch; begun from `main` where there is none. None: `main`.
        commit_message (`str`, *optional*): First line of the commit.

    Returns:
        [`~huggingface_hub.CommitInfo`]

    Raises:
        InputError: where the directory holds no model, or the Hub does not take it; the directory is as it was.
    """
    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"cannot upload {folder!r}: there is no config.json, so it holds no trained model.")
    repo_id = repo_id or Path(folder).resolve().name
    left = f"Nothing is lost: {folder} stays as it is, and the same command without --overwrite_output_dir uploads it."
    with hub_errors(repo_id, left):
        api = HfApi(token=token)
        repo_id = _open(api, repo_id, private, revision)
        with _named_in_card(Path(folder), repo_id):
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                ignore_patterns=IGNORED,
                delete_patterns=[*METRICS, *REPORTS],
            )


def _open(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> str:
    """Sees to it that there is this repository and branch, and that the token may write there; gives its whole name."""
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    api.auth_check(repo_id, write=True)  # a repository that there is is created, as it were, with any token
    if revision is not None:
        try:
            api.repo_info(repo_id, revision=revision)
        except RevisionNotFoundError:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id


@contextmanager
def _named_in_card(folder: Path, repo_id: str) -> Iterator[None]:
    """
    Has the card's example load the repository, where that of a run which was not to be uploaded loads its directory; if
    nothing comes of the upload, the card is what it was.
    """
    card = folder / REPOCARD_NAME
    held = card.read_bytes() if card.is_file() else b""
    named = re.sub(rb'(= pipeline\("[\w-]+", model=")[^"]*', rb"\g<1>" + repo_id.encode(), held)
    named = re.sub(rb"(`train\.py RECIPE\.yaml --model_name_or_path )[^`]+(?=`)", rb"\g<1>" + repo_id.encode(), named)
    if named == held or not os.access(card, os.W_OK):
        yield
        return
    card.write_bytes(named)
    try:
        yield
    except BaseException:
        card.write_bytes(held)
        raise


def check_access(arguments: RNNSentTrainingArguments):
    """
    Makes the repository and the branch that a run is to be uploaded to, before hours of training.

    Raises:
        InputError: where the Hub cannot be reached, or the run's token may not write there.
    """
    repo_id = arguments.hub_model_id or Path(arguments.output_dir).resolve().name
    with hub_errors(repo_id, NOTHING_TRAINED):
        _open(HfApi(token=arguments.hub_token), repo_id, arguments.hub_private_repo, arguments.hub_revision)


def publish_run(arguments: RNNSentTrainingArguments, commit_message: str = "End of training"):
    """Uploads a run's `output_dir`, as its own arguments say: [`publish`]."""
    return publish(
        arguments.output_dir,
        arguments.hub_model_id,
        arguments.hub_token,
        arguments.hub_private_repo,
        arguments.hub_revision,
        commit_message,
    )


@contextmanager
def hub_errors(repo_id: str, left: str) -> Iterator[None]:
    """Says in one line why the Hub did not take what was sent, and what is `left`."""
    try:
        yield
    except LocalTokenNotFoundError:
        raise _refused(repo_id, left, "there is no token: log in with `hf auth login`, or give --hub_token") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        reason = {
            401: "the token is not valid: log in with `hf auth login`, or give --hub_token",
            403: "the token may not write there, or the name belongs to somebody else",
            404: "there is no such repository or branch that the token may see",
            409: "the name is taken, or somebody else was writing at the same time",
            429: "the Hub asks to wait: too many requests",
        }.get(status, f"the Hub's answer is {status}")
        said = f" ({error.server_message})" if error.server_message else ""
        raise _refused(repo_id, left, reason + said) from error
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise _refused(repo_id, left, f"the connection failed ({error or type(error).__name__})") from error
    except ValueError as error:  # a name that no repository can have, or an answer that no Hub gives
        raise _refused(repo_id, left, str(error)) from error
    except RuntimeError as error:  # how a failed upload of a large file ends
        raise _refused(repo_id, left, f"the upload failed ({error.__cause__ or error})") from error


def _refused(repo_id: str, left: str, reason: str) -> InputError:
    return InputError(f"cannot upload to {repo_id!r}: {reason}. {left}")
