"""Finished runs beside each other: their results, and the settings in which they differ."""

import json
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from .checkpoints import RECIPE, TRAIN_RESULTS
from .errors import InputError
from .showing import figures, wilson_margins

_METRICS = ("accuracy", "f1", "roc_auc", "mse", "pearson", "perplexity", "calibration_error", "loss")


def compare_runs(folders: list[str]) -> list[dict[str, Any]]:
    """
    What the directories of finished runs say.

    Args:
        folders (`list[str]`): Directories that `train.py` wrote.

    Returns:
        `list[dict[str, Any]]`: for each `run`, the metrics on `split` (test where there is one), its `texts`, the
        command's `minutes`, and as `settings` a mapping of those in which the runs differ.

    Raises:
        InputError: where a directory holds no finished run.
    """
    runs = [_read(Path(folder)) for folder in folders]
    names = list(dict.fromkeys(name for _, recipe in runs for name in recipe))
    differing = [name for name in names if len({repr(recipe.get(name)) for _, recipe in runs}) > 1]
    return [{**results, "settings": {name: recipe.get(name) for name in differing}} for results, recipe in runs]


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        split = "test" if (folder / "test_results.json").exists() else "eval"
        measured = json.loads((folder / f"{split}_results.json").read_text(encoding="utf-8"))
        training = json.loads((folder / TRAIN_RESULTS).read_text(encoding="utf-8"))
        recipe = dict(yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8")))
        results = {"run": str(folder), "split": "validation" if split == "eval" else split}
        results["texts"] = measured[f"{split}_samples"]
        results |= {name: measured[f"{split}_{name}"] for name in _METRICS if f"{split}_{name}" in measured}
        results["minutes"] = round(training["total_runtime"] / 60, 2)
        return results, recipe
    except KeyError as error:
        raise InputError(f"{str(folder)!r} is of another version of train.py: its results lack {error}.") from error
    except FileNotFoundError as error:
        lack = f"holds no finished run of train.py: there is no {Path(error.filename).name}"
        raise InputError(f"{str(folder)!r} {lack if folder.is_dir() else 'is no directory'}.") from error
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"{str(folder)!r} holds no finished run of train.py ({error}).") from error


def draw_comparison(rows: list[dict[str, Any]], path: str):
    """
    Draws each run's accuracy with its 95 % interval (or the first metric that all have) beside its minutes.

    Args:
        rows (`list[dict[str, Any]]`): What [`compare_runs`] returns.
        path (`str`): The picture to write; its ending says the format.

    Raises:
        InputError: where the runs have no metric in common, or the picture cannot be written.
    """
    metric = next((name for name in _METRICS if all(name in row for row in rows)), None)
    if metric is None:
        raise InputError("the runs have no metric in common to draw.")
    figure = Figure(figsize=(7, 1.2 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        value, margin = row[metric], None
        if metric == "accuracy":
            margin = [[distance] for distance in wilson_margins(round(value * row["texts"]), row["texts"])]
        axes.errorbar(value, -place, xerr=margin, fmt="o", capsize=3)
        told = f"{figures(value)}, {row['minutes']:.1f} min"
        axes.annotate(told, (value, -place), (0, 7), textcoords="offset points")
    splits = " or ".join(dict.fromkeys(row["split"] for row in rows))
    axes.set(
        yticks=[-place for place in range(len(rows))],
        xlabel=f"{metric} on {splits}",
    )
    axes.set_yticklabels([row["run"] for row in rows])
    axes.margins(x=0.2)
    axes.set_ylim(-len(rows) + 0.4, 0.7)
    axes.grid(alpha=0.3, axis="x")
    try:
        figure.savefig(path, dpi=120)
    except (ValueError, OSError) as error:  # an ending that is no picture's, or no place to write
        raise InputError(f"--picture {path!r}: {error}") from error
