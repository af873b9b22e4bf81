"""
Gathers finished runs of the full IMDb data, and draws accuracy against minutes with the rivals of `baselines.py`:

    python benchmarks/runs.py DIRECTORY ...

Every DIRECTORY is an `output_dir` named RECIPE-SEED, as `default-1`, of a run on this machine. Minutes are those of the
whole command, and of the one that trained what it starts from where that is a directory as well. They go to
`results/runs.json`, beside those that it holds already, and into `../docs/accuracy.png`.
"""

import json
import statistics
import sys
from pathlib import Path

import yaml
from matplotlib.figure import Figure
from measuring import RESULTS, describe_machine, show, write

PICTURE = Path(__file__).parents[1] / "docs" / "accuracy.png"


def minutes(folder: Path) -> float:
    """Of the run and of those that it stands on."""
    start = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8")).get("model_name_or_path")
    own = json.loads((folder / "train_results.json").read_text())["total_runtime"] / 60
    return own + (minutes(Path(start)) if start and Path(start, "train_results.json").exists() else 0.0)


def read(folder: Path) -> dict:
    recipe, _, seed = folder.name.rpartition("-")
    validation, test = (json.loads((folder / f"{part}_results.json").read_text()) for part in ("eval", "test"))
    return {
        "recipe": recipe,
        "seed": int(seed),
        "validation": validation["eval_accuracy"],
        "test": test["test_accuracy"],
        "calibration error": round(test["test_calibration_error"], 4),
        "minutes": round(minutes(folder), 1),
        "processor": describe_machine()["processor"],
    }


def spread(values: list[float]) -> str:
    values = [100 * value for value in values]
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def group(rows: list[dict]) -> list[dict]:
    """A row a recipe and processor: mean and standard deviation over its seeds."""
    groups = []
    for recipe, processor in dict.fromkeys((row["recipe"], row["processor"]) for row in rows):
        runs = [row for row in rows if (row["recipe"], row["processor"]) == (recipe, processor)]
        groups.append(
            {
                "recipe": recipe,
                "seeds": ", ".join(str(row["seed"]) for row in runs),
                "validation": spread([row["validation"] for row in runs]),
                "test": spread([row["test"] for row in runs]),
                "processor": processor,
                "minutes": f"{min(row['minutes'] for row in runs):.1f} to {max(row['minutes'] for row in runs):.1f}",
            }
        )
    return groups


def draw(rows: list[dict], rivals: list[dict]):
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    points = [(row["model"], [row["seconds"] / 60], [float(row["test accuracy"])], "o", "tab:gray") for row in rivals]
    for recipe, processor in dict.fromkeys((row["recipe"], row["processor"]) for row in rows):
        runs = [row for row in rows if (row["recipe"], row["processor"]) == (recipe, processor)]
        points.append((recipe, [row["minutes"] for row in runs], [row["test"] for row in runs], "D", "tab:blue"))
    for name, times, accuracies, marker, colour in points:
        time, accuracy = statistics.mean(times), 100 * statistics.mean(accuracies)
        margin = 100 * statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        axes.errorbar(time, accuracy, yerr=margin or None, fmt=marker, color=colour, capsize=3)
        place = (6, 4) if marker == "D" else (6, -11)  # the rivals' below, out of the way of ours
        axes.annotate(name, (time, accuracy), place, textcoords="offset points", fontsize=8, color=colour)
    axes.set_xscale("log")
    axes.set(xlabel="minutes, all told", ylabel="test accuracy, %", title="IMDb, 25,000 test reviews")
    axes.margins(x=0.25, y=0.1)
    axes.grid(alpha=0.3)
    figure.savefig(PICTURE, dpi=120)
    print(f"drawn to {PICTURE}")


if __name__ == "__main__":
    held = RESULTS / "runs.json"
    rows = json.loads(held.read_text())["rows"] if held.exists() else []
    rows += map(read, map(Path, sys.argv[1:]))
    rows = {(row["recipe"], row["processor"], row["seed"]): row for row in rows}  # the last of each
    rows = [rows[key] for key in sorted(rows)]
    show("IMDb, 25,000 test reviews", group(rows))
    machine = describe_machine()
    for own in ("processor", "instructions", "cores", "threads"):  # this process's, not the runs'
        del machine[own]
    write("runs", machine, rows)
    draw(rows, json.loads((RESULTS / "baselines.json").read_text())["rows"])
