"""A saved directory in a fresh process that cannot import this package."""

import ast
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import SMALL, run, train

from modeling_rnnsent import (
    RNNSentConfig,
    RNNSentForCausalLM,
    RNNSentForSequenceClassification,
    RNNSentForTokenClassification,
)

# The package is made impossible to import, not just absent from the path.
WITHOUT_PACKAGE = """
import sys
sys.modules["modeling_rnnsent"] = None
import json, torch
from transformers import (AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification,
                          AutoModelForTokenClassification, AutoTokenizer, pipeline)
folder = sys.argv[1]
trusted = {"trust_remote_code": True}
"""


def run_without_package(tmp_path, folder, code):
    script = tmp_path / "script.py"
    script.write_text(WITHOUT_PACKAGE + code)
    return run(sys.executable, script, folder, cwd=tmp_path, HF_MODULES_CACHE=str(tmp_path / "modules"))


def test_every_auto_class_and_the_pipeline(book_run, tmp_path):
    result = run_without_package(
        tmp_path,
        book_run,
        """
config = AutoConfig.from_pretrained(folder, **trusted)
tokenizer = AutoTokenizer.from_pretrained(folder, **trusted)
batch = tokenizer(["a wonderful film", "dull"], padding=True, return_tensors="pt")
classes = [AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModelForCausalLM]
shapes = {}
for auto_class in classes:
    model = auto_class.from_pretrained(folder, **trusted).eval()
    shapes[type(model).__name__] = list(model(**batch)[0].shape)
classifier = pipeline("text-classification", model=folder, **trusted)
answers = classifier(["a wonderful film", "dull dull dull", "", "wonderful " * 3000])
features = pipeline("feature-extraction", model=folder, batch_size=4, **trusted)
lengths = [len(found[0]) for found in features(["a wonderful film", "dull", "a film", "dull dull"])]
print(json.dumps({"shapes": shapes, "answers": answers, "vocabulary": len(tokenizer), "lengths": lengths}))
""",
    )
    found = json.loads(result.stdout.splitlines()[-1])
    size = found["vocabulary"]
    assert found["shapes"] == {
        "RNNSentModel": [2, 3, 64],
        "RNNSentForSequenceClassification": [2, 2],
        "RNNSentForTokenClassification": [2, 3, 2],
        "RNNSentForCausalLM": [2, 3, size],
    }
    assert [answer["label"] for answer in found["answers"]][:2] == ["1", "0"]
    assert found["answers"][3]["label"] == "1" and found["lengths"] == [3, 3, 3, 3]
    # what `transformers` prints for any model: heads that the checkpoint lacks, nothing about its code
    assert "Warning" not in result.stderr, result.stderr


def test_same_numbers_with_and_without_the_package(book_run, tmp_path):
    result = run_without_package(
        tmp_path,
        book_run,
        """
model = AutoModelForSequenceClassification.from_pretrained(folder, **trusted)
print(json.dumps(model(torch.tensor([[2, 3, 4, 5]])).logits.tolist()))
""",
    )
    model = RNNSentForSequenceClassification.from_pretrained(book_run)
    expected = model(torch.tensor([[2, 3, 4, 5]])).logits
    torch.testing.assert_close(torch.tensor(json.loads(result.stdout.splitlines()[-1])), expected)


def test_saved_again_without_the_package_it_still_loads(book_run, tmp_path):
    second = tmp_path / "second"
    run_without_package(
        tmp_path,
        book_run,
        f"""
model = AutoModelForSequenceClassification.from_pretrained(folder, **trusted)
model.save_pretrained({str(second)!r})
AutoTokenizer.from_pretrained(folder, **trusted).save_pretrained({str(second)!r})
again = pipeline("text-classification", model={str(second)!r}, **trusted)
assert again("wonderful wonderful")[0]["label"] == "1"
""",
    )
    assert "--" not in json.dumps(json.loads((second / "config.json").read_text())["auto_map"])


def test_a_language_models_card_shows_how_it_goes_on_with_a_text(reviews, tmp_path):
    files = [f"--{name}_file={reviews / name}.csv" for name in ("train", "validation")]
    train(*files, *SMALL, "--task=language-modeling", "--max_steps=1", f"--output_dir={tmp_path / 'lm'}")
    card = (tmp_path / "lm" / "README.md").read_text()
    *lines, call = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].strip().splitlines()
    code = "\n".join([*lines, f"print(json.dumps({call}))"])
    (answer,) = json.loads(run_without_package(tmp_path, tmp_path / "lm", code).stdout.splitlines()[-1])
    assert answer["generated_text"].startswith("the film was ") and len(answer["generated_text"].split()) > 20


@pytest.mark.parametrize(
    "model_class", [RNNSentForSequenceClassification, RNNSentForTokenClassification, RNNSentForCausalLM]
)
def test_every_model_saves_the_code_files(model_class, tmp_path):
    model = model_class(RNNSentConfig(vocab_size=9, embedding_size=4, hidden_size=4))
    model.save_pretrained(tmp_path)
    package = Path(sys.modules["modeling_rnnsent"].__file__).parent
    for name in ("configuration_rnnsent.py", "modeling_rnnsent.py", "recurrence_rnnsent.py"):
        assert (tmp_path / name).read_text() == (package / name).read_text()


def test_traveling_files_import_torch_and_transformers_alone():
    package = Path(sys.modules["modeling_rnnsent"].__file__).parent
    allowed = {"torch", "numpy", "transformers", "huggingface_hub"} | set(sys.stdlib_module_names)
    files = sorted(package.glob("*_rnnsent.py"))
    assert len(files) == 9
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            elif isinstance(node, ast.ImportFrom):
                assert node.module.endswith("_rnnsent")
                continue
            else:
                continue
            assert {name.split(".")[0] for name in names} <= allowed


def test_wheel_alone_saves_checkpoints_that_load(tmp_path):
    """The wheel unpacked in an empty folder is the package; the checkout is out of reach."""
    root = Path(__file__).parent.parent
    source = tmp_path / "source"

    shutil.copytree(
        root / "modeling_rnnsent", source / "modeling_rnnsent", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source / name)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", source)
    wheel = next((tmp_path / "dist").glob("rnnsent-*.whl"))
    site = tmp_path / "site"
    run(sys.executable, "-m", "zipfile", "-e", wheel, site)
    run(
        sys.executable,
        "-c",
        "import modeling_rnnsent as package\n"
        f"assert package.__file__.startswith({str(site)!r}), package.__file__\n"
        "package.RNNSentForSequenceClassification(package.RNNSentConfig(vocab_size=9)).save_pretrained('saved')",
        cwd=tmp_path,
        PYTHONPATH=str(site),
    )
    run_without_package(
        tmp_path,
        tmp_path / "saved",
        "assert AutoModelForSequenceClassification.from_pretrained(folder, **trusted).num_labels == 2",
    )
