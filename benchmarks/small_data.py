"""
`default.yaml` on small data, against TF-IDF + logistic regression trained on the same texts:

    python benchmarks/small_data.py [DATASET]

100 to 22,500 of IMDb's reviews, validated on a quarter as many (2,500 at most) and tested on 5,000, drawn into
`../docs/learning_curve.png`; and 4,700 short texts of six unequal classes: the first paragraphs of docstrings, to be
told by the library that they come from. DATASET is `stanfordnlp/imdb` (the default) or a local folder in its layout.
"""

import ast
import importlib.util
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas
from matplotlib.figure import Figure
from measuring import describe_machine, show, write
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from modeling_rnnsent.arguments import DataArguments
from modeling_rnnsent.data import load_labeled_texts

LIBRARIES = {"scipy": 1600, "sklearn": 1200, "pandas": 800, "matplotlib": 600, "networkx": 300, "transformers": 200}
REVIEWS = (100, 300, 1000, 3000, 10_000, 22_500)
ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "learning_curve.png"
SIDES = ("default.yaml", "TF-IDF + logistic regression")


def docstrings(library: str) -> set[str]:
    """First paragraphs of a library's docstrings, of four words and more."""
    found = set()
    for path in Path(importlib.util.find_spec(library).origin).parent.rglob("*.py"):
        if "test" in str(path):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                words = (ast.get_docstring(node) or "").split("\n\n")[0].split()
                if len(words) > 3:
                    found.add(" ".join(words)[:200])
    return found


def write_docstrings(folder: Path) -> list[str]:
    """Training, validation and test files, as flags."""
    generator, rows = random.Random(0), []
    for library, count in LIBRARIES.items():
        texts = sorted(docstrings(library))
        generator.shuffle(texts)
        rows += [{"text": text, "label": library} for text in texts[:count]]
    generator.shuffle(rows)
    ends = {"train": int(0.7 * len(rows)), "validation": int(0.8 * len(rows)), "test": len(rows)}
    flags, start = [], 0
    for name, end in ends.items():
        pandas.DataFrame(rows[start:end]).to_csv(folder / f"{name}.csv", index=False)
        flags.append(f"--{name}_file={folder / name}.csv")
        start = end
    return flags


def compare(name: str, flags: list[str], folder: Path) -> dict:
    """Test accuracy of both sides, each trained on the training texts alone."""
    settings = dict(flag[2:].split("=", 1) for flag in flags)
    settings = {key: int(value) if value.isdigit() else value for key, value in settings.items()}
    splits = load_labeled_texts(DataArguments(**settings)).splits
    vectorizer = TfidfVectorizer()
    rival = LogisticRegression(C=10.0, max_iter=500)
    rival.fit(vectorizer.fit_transform(splits["train"]["text"]), splits["train"]["label"])
    rival_accuracy = rival.score(vectorizer.transform(splits["test"]["text"]), splits["test"]["label"])
    output = folder / name.replace(" ", "-")
    command = [sys.executable, "train.py", "configuration/default.yaml", *flags, f"--output_dir={output}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    accuracy = json.loads((output / "test_results.json").read_text())["test_accuracy"]
    return {
        "data": name,
        "training texts": len(splits["train"]),
        **{side: f"{value:.4f}" for side, value in zip(SIDES, (accuracy, rival_accuracy))},
    }


def measure(dataset_name: str) -> Iterator[dict]:
    with tempfile.TemporaryDirectory() as folder:
        for count in REVIEWS:
            sizes = {"train": count, "eval": min(2500, max(50, count // 4)), "test": 5000}
            flags = [f"--max_{split}_samples={size}" for split, size in sizes.items()]
            yield compare(f"IMDb, {count:,} reviews", [f"--dataset_name={dataset_name}", *flags], Path(folder))
        yield compare("docstrings of six libraries", write_docstrings(Path(folder)), Path(folder))


def draw(rows: list[dict]):
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for side in SIDES:
        axes.plot([row["training texts"] for row in rows], [100 * float(row[side]) for row in rows], "o-", label=side)
    axes.set_xscale("log")
    axes.set(xlabel="labelled training reviews", ylabel="test accuracy, %", title="IMDb, 5,000 test reviews")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(PICTURE, dpi=120)
    print(f"drawn to {PICTURE}")


if __name__ == "__main__":
    rows = list(measure(sys.argv[1] if len(sys.argv) > 1 else "stanfordnlp/imdb"))
    show("Test accuracy on small data, one seed", rows)
    write("small_data", describe_machine(), rows)
    draw([row for row in rows if row["data"].startswith("IMDb")])
