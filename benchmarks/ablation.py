"""
What each idea adds to the recurrent layers of `imdb.yaml`, at ten minutes of training:

    python benchmarks/ablation.py START [DATASET] [--minutes 10] [--rows NAME ...] [--work DIRECTORY]

START is the directory that `train.py configuration/pretrain.yaml` wrote, DATASET `stanfordnlp/imdb` (the default) or a
local folder in its layout. Every row is `imdb.yaml` without n-grams but for what its name says, trained for as many
steps as take the time on this machine now (forty are timed first), and measured on validation; the first with three
seeds, which tell how much chance is in a difference. Rows that DIRECTORY holds are not trained again.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from measuring import describe_machine, show, write

ROOT = Path(__file__).parents[1]
BASE = "imdb.yaml"
FROM_SCRATCH = {
    "model_name_or_path": None,
    "embedding_size": 128,
    "hidden_size": 384,
    "bidirectional": True,
    "initializer_range": 0.1,
    "min_frequency": 5,
    "keep_punctuation": True,
}
ROWS = {
    BASE: {},
    "without the language models": FROM_SCRATCH,
    "word vectors in place of them": {**FROM_SCRATCH, "word_vectors": "word2vec"},
    "with adversarial loss": {"adversarial_weight": 1},
    "with virtual adversarial loss": {"virtual_adversarial_weight": 1},
    "with entropy minimization, weight 0.3": {"entropy_weight": 0.3},
    "word dropout 0.1": {"word_dropout": 0.1},
    "embedding dropout 0.2": {"embedding_dropout": 0.2, "variational_dropout": True},
    "embedding dropout 0.2 anew at every word": {"embedding_dropout": 0.2},
    "without pooling dropout": {"pooling_dropout": 0},
    "DropConnect on the recurrent weights, 0.3": {"weight_dropout": 0.3},
    "with n-grams to four words": {"ngram_order": 4},
    "batches of 32": {"per_device_train_batch_size": 32},
    "label smoothing 0.1": {"label_smoothing_factor": 0.1},
    "mean of the states": {"pooling": "mean"},
    "last states": {"pooling": "last", "pooling_dropout": 0},
    "learning rate by cosine": {"lr_scheduler_type": "cosine"},
    "learning rate constant": {"lr_scheduler_type": "constant"},
    "training texts cut at 200 words": {"max_length": 200},
}
TIMED_STEPS = 40


def train(settings: dict, folder: Path) -> dict:
    """Runs a recipe of these settings to its end; its own measurements."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "run.yaml"
    recipe.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    output = folder / "model"
    subprocess.run(
        [sys.executable, "train.py", str(recipe.resolve()), f"--output_dir={output.resolve()}"]
        + ["--overwrite_output_dir", "--disable_tqdm=true"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    read = {name: json.loads((output / f"{name}_results.json").read_text()) for name in ("eval", "train")}
    return {**read["eval"], **read["train"]}


def measure_row(changes: dict, fixed: dict, minutes: float, folder: Path) -> dict:
    """Accuracy and loss of a row after as many steps as fit."""
    result = folder / "result.json"
    if result.exists():
        return json.loads(result.read_text())
    recipe = yaml.safe_load((ROOT / "configuration" / "imdb.yaml").read_text(encoding="utf-8"))
    for name in ("load_best_model_at_end", "num_train_epochs"):
        del recipe[name]
    settings = {**recipe, "ngram_order": 0, "max_test_samples": 100, "eval_strategy": "no", "save_strategy": "no"}
    settings = {name: value for name, value in {**settings, **fixed, **changes}.items() if value is not None}
    timed = train({**settings, "max_steps": TIMED_STEPS}, folder)
    steps = max(1, round(60 * minutes * TIMED_STEPS / timed["train_runtime"]))
    measured = train({**settings, "max_steps": steps}, folder)
    row = {
        "steps": steps,
        "minutes": measured["train_runtime"] / 60,
        "accuracy": measured["eval_accuracy"],
        "loss": measured["eval_loss"],
    }
    result.write_text(json.dumps(row))
    return row


def measure(arguments: argparse.Namespace) -> Iterator[dict]:
    fixed = {"dataset_name": arguments.dataset, "model_name_or_path": str(Path(arguments.start).resolve())}
    for name in arguments.rows or ROWS:
        found = []
        for seed in (1, 2, 3) if name == BASE else (1,):
            folder = Path(arguments.work) / f"{name.replace(' ', '-')}-{seed}"
            found.append(measure_row(ROWS[name], {**fixed, "seed": seed}, arguments.minutes, folder))
        row = {"row": name}
        for key, form in (("steps", ",.0f"), ("minutes", ".1f"), ("accuracy", ".4f"), ("loss", ".4f")):
            values = [part[key] for part in found]
            row[key] = format(statistics.mean(values), form)
            if len(values) > 1 and key in ("accuracy", "loss"):
                row[key] += f" ± {statistics.stdev(values):.4f}"
        print(row, flush=True)
        yield row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start", metavar="START")
    parser.add_argument("dataset", metavar="DATASET", nargs="?", default="stanfordnlp/imdb")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="NAME", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--work", default=str(ROOT / "runs" / "ablation"))
    arguments = parser.parse_args()
    rows = list(measure(arguments))
    show("Recurrent layers of imdb.yaml on validation", rows)
    if not arguments.rows:  # a part must not take the place of the whole
        write("ablation", describe_machine(), rows)
