"""Uploads by the real client to a Hub on loopback, and what comes back from it in a process without the package."""

import json
import os
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT, SMALL, run, train
from hub_server import HubServer
from huggingface_hub import ModelCard, SpaceCard
from test_bulk import leave_one_window
from test_distributed import free_port
from test_training import fails, read

CLASSIFY = """
import json, sys
sys.modules["modeling_rnnsent"] = None  # the package cannot be imported here
from transformers import pipeline
answers = []
for model in sys.argv[1:]:
    name, _, revision = model.partition("@")
    classify = pipeline("text-classification", model=name, revision=revision or "main", trust_remote_code=True)
    answers.append(classify(["a wonderful film", "dull"]))
print(json.dumps(answers))
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = HubServer()
    for name, value in online(hub, tmp_path).items():
        monkeypatch.setenv(name, value)
    yield hub
    hub.close()


def online(hub, tmp_path, token="hf_owner"):
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": token,
        "HF_HOME": str(tmp_path / "home"),
    }


def python(code, *arguments):
    """Runs code as a process of its own: the client reads its settings when it is imported."""
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=os.environ, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def classify(*models):
    """What each of the models, NAME or NAME@REVISION, answers."""
    return json.loads(python(CLASSIFY, *models).splitlines()[-1])


def test_run_is_pushed_and_loads_without_the_package(hub, reviews, tmp_path):
    output = tmp_path / "sentiment"
    files = [f"--{name}_file={reviews / name}.csv" for name in ("train", "validation", "test")]
    flags = [*files, *SMALL, "--num_train_epochs=1", "--save_strategy=epoch", f"--output_dir={output}", "--push_to_hub"]
    train(*flags[:-1])  # first without --push_to_hub
    assert "holds this run, finished: it is uploaded" in train(*flags, HF_HUB_OFFLINE="0").stdout
    pushed = hub.files("owner/sentiment")
    # What lies in the directory, checkpoints and the like apart, byte for byte.
    local = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
    assert {name: pushed[name] for name in local} == local and set(pushed) == {*local, ".gitattributes"}
    assert not [name for name in pushed if name.endswith((".bin", ".pt", ".pth", ".pkl")) or "checkpoint" in name]
    assert any(request.startswith("PUT /large/") for request in hub.requests)
    card = ModelCard(pushed["README.md"].decode())
    assert card.data.eval_results and card.data.pipeline_tag == "text-classification"
    assert 'model="owner/sentiment"' in card.text  # the card's example is one that runs
    answers, own = classify("owner/sentiment", output)
    assert answers == own
    # Pinned to a revision, the model stays what it was whatever is pushed after it.
    first = hub.heads["owner/sentiment"]["main"]
    train(*flags, "--seed=7", "--learning_rate=0.01", "--overwrite_output_dir", HF_HUB_OFFLINE="0")
    assert hub.heads["owner/sentiment"]["main"] != first
    pinned, newest = classify(f"owner/sentiment@{first}", "owner/sentiment")
    assert pinned == answers != newest


def test_branch_token_and_private_repository_are_those_that_were_asked_for(hub, reviews, tmp_path, pushing):
    output, flags = pushing
    secret = ["--hub_token=hf_owner", "--hub_private_repo=true", "--hub_revision=second", "--hub_model_id=mine"]
    train(*flags, *secret, HF_HUB_OFFLINE="0", HF_TOKEN="hf_reader")
    assert hub.private == {"owner/mine"} and set(hub.files("owner/mine")) == {".gitattributes"}
    pushed = hub.files("owner/mine", "second")
    assert pushed["model.safetensors"] == (output / "model.safetensors").read_bytes()
    assert not [name for name, content in pushed.items() if b"hf_owner" in content]
    # What an earlier run measured and drew is not left beside the next one's results, what else is there is.
    assert "train_results.json" in pushed and "training_curves.png" in pushed
    hub.commit("owner/mine", "second", {"roc.png": b"old", "test_results.json": b"{}", "NOTES.md": b"by hand"})
    train(*flags, *secret, "--seed=5", "--overwrite_output_dir", HF_HUB_OFFLINE="0")
    pushed = hub.files("owner/mine", "second")
    assert set(pushed) == {path.name for path in output.iterdir() if path.is_file()} | {".gitattributes", "NOTES.md"}


def test_repository_that_the_token_may_only_read_is_refused_before_the_training(hub, pushing):
    output, flags = pushing
    hub.repositories["owner/mine"], hub.heads["owner/mine"] = {}, {}
    hub.commit("owner/mine", "main", {".gitattributes": b""})
    line = fails(*flags, "--hub_model_id=owner/mine", HF_TOKEN="hf_reader", HF_HUB_OFFLINE="0")
    assert "may not write there" in line and "Nothing has been trained yet" in line and not output.exists()


def test_card_of_a_language_model_uploaded_later_starts_from_the_repository(hub, reviews, tmp_path):
    flags = [f"--train_file={reviews / 'train.csv'}", *SMALL, "--task=language-modeling", "--bidirectional=true"]
    flags += ["--max_steps=1", f"--output_dir={tmp_path / 'both'}"]
    train(*flags)
    train(*flags, "--push_to_hub", HF_HUB_OFFLINE="0", HF_TOKEN="hf_digit")  # no digits of a pattern's
    card = hub.files("01-owner/both")["README.md"].decode()
    assert "`train.py RECIPE.yaml --model_name_or_path 01-owner/both`" in card and str(tmp_path) not in card


def test_model_and_tokenizer_push_themselves(hub, book_run):
    code = """
import sys
from transformers import AutoTokenizer
from modeling_rnnsent import RNNSentForSequenceClassification
RNNSentForSequenceClassification.from_pretrained(sys.argv[1]).push_to_hub("mine")
AutoTokenizer.from_pretrained(sys.argv[1]).push_to_hub("mine")
"""
    python(code, book_run)
    names = set(hub.files("owner/mine"))
    assert names >= {
        "model.safetensors",
        "config.json",
        "modeling_rnnsent.py",
        "recurrence_rnnsent.py",
        "tokenizer.json",
    }
    pushed, own = classify("owner/mine", book_run)
    assert pushed == own


def test_a_stopped_prediction_goes_on_with_the_same_commit_only(hub, book_run, tmp_path):
    python("import sys; from modeling_rnnsent.publishing import publish; publish(sys.argv[1], 'mine')", book_run)
    (tmp_path / "texts.txt").write_text("a wonderful film\ndull\n" * 5000)
    command = ["predict", "owner/mine", "--input", tmp_path / "texts.txt", "--output", tmp_path / "labels.jsonl"]
    leave_one_window(tmp_path / "labels.jsonl.part-0-of-1", *command)
    hub.commit("owner/mine", "main", {"notes.txt": b"another model, it may be"})
    again = [sys.executable, "-m", "modeling_rnnsent.cli", *map(str, command)]  # online, unlike `run`
    refused = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 1 and "holds results of another input, model or precision" in refused.stderr
    subprocess.run([*again, "--overwrite"], cwd=ROOT, check=True, capture_output=True, timeout=300)
    assert len((tmp_path / "labels.jsonl").read_text().splitlines()) == 10_000


def test_a_stopped_prediction_goes_on_with_the_same_data_only(hub, book_run, tmp_path):
    hub.repositories["owner/texts"], hub.heads["owner/texts"] = {}, {}
    lines = ["a wonderful film", "dull"] * 5000
    hub.commit("owner/texts", "main", {"test.csv": "\n".join(["text", *lines]).encode()})
    command = ["predict", book_run, "--input", "owner/texts", "--output", tmp_path / "labels.jsonl"]
    leave_one_window(tmp_path / "labels.jsonl.part-0-of-1", *command)
    hub.commit("owner/texts", "main", {"test.csv": "\n".join(["text", *lines[::-1]]).encode()})
    again = [sys.executable, "-m", "modeling_rnnsent.cli", *map(str, command)]  # online, unlike `run`
    refused = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 1 and "holds results of another input, model or precision" in refused.stderr
    subprocess.run([*again, "--overwrite"], cwd=ROOT, check=True, capture_output=True, timeout=300)
    labels = [json.loads(line)["label"] for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert labels == ["0", "1"] * 5000


def push_flags(reviews, output):
    return [f"--train_file={reviews / 'train.csv'}", *SMALL, "--max_steps=2", f"--output_dir={output}", "--push_to_hub"]


@pytest.fixture
def pushing(reviews, tmp_path):
    output = tmp_path / "sentiment"
    return output, push_flags(reviews, output)


def test_what_the_hub_refuses_is_said_before_the_training(hub, tmp_path):
    cases = {
        ("hf_wrong", "mine"): "the token is not valid",
        ("hf_reader", "mine"): "may not write there",
        ("hf_owner", "somebody/else"): "may not write there",
        ("hf_owner", "a name"): "Repo id must",
    }
    code = (
        "import sys\n"
        "from modeling_rnnsent.arguments import RNNSentTrainingArguments\n"
        "from modeling_rnnsent.errors import InputError\n"
        "from modeling_rnnsent.publishing import check_access\n"
        "for token, repo_id in zip(sys.argv[1::2], sys.argv[2::2]):\n"
        "    run = {'output_dir': 'run', 'report_to': [], 'hub_token': token, 'hub_model_id': repo_id}\n"
        "    try:\n"
        "        check_access(RNNSentTrainingArguments(**run))\n"
        "    except InputError as error:\n"
        "        print(error)\n"
    )
    lines = python(code, *[part for case in cases for part in case]).splitlines()
    for ((_, repo_id), reason), line in zip(cases.items(), lines, strict=True):
        assert reason in line and "Nothing has been trained yet" in line and repo_id in line


def test_what_is_no_model_makes_no_repository(hub, tmp_path):
    (tmp_path / "empty").mkdir()
    code = (
        "from modeling_rnnsent.errors import InputError\n"
        "from modeling_rnnsent.publishing import publish\n"
        "import sys\n"
        "for folder in sys.argv[1:]:\n"
        "    try:\n"
        "        publish(folder, 'owner/nothing')\n"
        "    except InputError as error:\n"
        "        print(error)\n"
    )
    lines = python(code, tmp_path / "empty", tmp_path / "none").splitlines()
    assert len(lines) == 2 and all("there is no config.json, so it holds no trained model" in line for line in lines)
    assert not hub.heads


def test_connection_that_drops_loses_nothing_and_the_same_command_uploads(reviews, tmp_path):
    def drop_and_upload(dropped):
        hub, output = HubServer(), tmp_path / dropped.split("/")[1] / "sentiment"
        flags, environment = push_flags(reviews, output), online(hub, output.parent)
        try:
            hub.drop = dropped
            line = fails(*flags, **environment, HF_HUB_ETAG_TIMEOUT="2")
            again = "the same command without --overwrite_output_dir uploads it"
            assert "cannot upload to" in line and again in line, line
            assert set(hub.files("owner/sentiment")) == {".gitattributes"}
            held = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
            hub.drop = None
            result = train(*flags, **environment)
            assert "holds this run, finished: it is uploaded" in result.stdout
            assert "train_results.json" in held
            assert held == {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
            assert hub.files("owner/sentiment")["model.safetensors"] == held["model.safetensors"]
            assert read(output / "train_results.json")["train_samples"] == 360
        finally:
            hub.close()
        return [*flags, "--hidden_size=24"], environment

    # At once: most of their time is the client's, which waits before it tries again.
    with ThreadPoolExecutor() as pool:
        others = list(pool.map(drop_and_upload, ("PUT /large/", "POST .*/commit/")))
    flags, environment = others[0]  # another run is not taken for this one
    assert "holds a finished run" in fails(*flags, **environment)


def test_server_that_is_not_there_is_said(pushing, tmp_path):
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_owner", "HF_HOME": str(tmp_path / "home")}
    line = fails(*pushing[1], HF_HUB_OFFLINE="0", **environment)
    assert "the connection failed" in line
    offline = fails(*pushing[1], **environment)
    assert "offline" in offline.lower()


@pytest.mark.slow
def test_space_that_the_readmes_commands_upload_answers(hub, book_run, tmp_path):
    gradio_client = pytest.importorskip("gradio_client")
    commands = [
        line.split("  #")[0] for line in (ROOT / "README.md").read_text().split("\n") if "--repo-type space" in line
    ]
    commands.append(f"hf upload owner/sentiment {book_run} .")
    for command in commands:
        run("bash", "-c", command.replace("USER/SPACE", "owner/page"), HF_HUB_OFFLINE="0")
    folder = tmp_path / "space"
    for name, content in hub.files("owner/page").items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    card = SpaceCard.load(folder / "README.md").data
    assert (folder / card.app_file).exists() and f"gradio=={card.sdk_version}" in (ROOT / "constraints.txt").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {*project["dependencies"], *project["optional-dependencies"]["explain"]}
    assert set((folder / "requirements.txt").read_text().split("\n")[1:]) - {""} == wanted

    port = free_port()
    environment = {**os.environ, "RNNSENT_MODELS": "owner/sentiment", "GRADIO_SERVER_PORT": str(port)}
    process = subprocess.Popen(
        [sys.executable, card.app_file], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert any("Running on" in line for line in process.stdout)
        client = gradio_client.Client(f"http://127.0.0.1:{port}", verbose=False)
        answer = client.predict("owner/sentiment", "a wonderful film", api_name="/classify")[0]
        expected = classify(book_run)[0][0]
        assert answer["label"] == expected["label"]
        assert answer["confidences"][0]["confidence"] == pytest.approx(expected["score"], abs=1e-4)
    finally:
        process.kill()
