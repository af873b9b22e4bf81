"""
Input that is larger than memory: INPUT_GB says how many gigabytes (0.2 unless told). By hand, 10: predicting held
468 MiB (454 for a hundredth of it), training 1,277 (420).

Predicting may keep nothing of a row; training under a hundred bytes (its label, length and place), never its text.
"""

import os
import random
import subprocess
import sys
import time

import pyarrow
import pyarrow.parquet
import pytest
from conftest import ROOT, SMALL

GIGABYTES = float(os.environ.get("INPUT_GB", 0.2))
ROW_BYTES = 1000
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc"),
]


def write_rows(path, number: int):
    """Rows of about a kilobyte: few and long words, so that ten gigabytes are read in minutes."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=80)) for _ in range(5000)]
    rows = [f"{' '.join(generator.choices(words, k=12))},{index % 2}\n" for index in range(5000)]
    with open(path, "w", encoding="utf-8") as file:
        file.write("text,label\n")
        for start in range(0, number, len(rows)):
            file.writelines(rows[: number - start])


def most_memory(*command, folder) -> float:
    """MiB that a program holds at most, without the pages of files that it has mapped."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    with open(folder / "log", "w+") as log:
        process = subprocess.Popen([str(part) for part in command], cwd=ROOT, env=environment, stdout=log, stderr=log)
        most = 0
        while process.poll() is None:
            with open(f"/proc/{process.pid}/status") as status:
                lines = [line.split() for line in status if line.startswith("RssAnon")]
            most = max([most, *(int(line[1]) / 2**10 for line in lines)])
            time.sleep(0.05)
        log.seek(0)
        assert process.returncode == 0, log.read()
    return most


def test_parquet_files_of_one_group_of_rows_are_read_in_pieces(book_run, tmp_path):
    """As pandas writes it: up to a million rows in a group, with columns that are not asked for."""
    generator, most = random.Random(0), {}
    for number in (20_000, 120_000):
        (tmp_path / str(number)).mkdir()
        path = tmp_path / str(number) / "test.parquet"
        texts = [generator.randbytes(500).hex() for _ in range(number)]  # which cannot be compressed to less than half
        table = pyarrow.table({"text": texts, "other": [text[::-1] for text in texts]})
        pyarrow.parquet.write_table(table, path, row_group_size=1 << 20, use_dictionary=False)
        command = [sys.executable, "-m", "modeling_rnnsent.cli", "predict", book_run]
        command += ["--input", path.parent, "--output", tmp_path / f"{number}.jsonl"]
        most[number] = most_memory(*command, folder=tmp_path)
        path.unlink()
    print(most)
    assert most[120_000] - most[20_000] < 50  # each of the columns has 120 MB in the larger


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of INPUT_GB, and one of a hundredth, but of the 15 windows after which predicting holds its most."""
    folder, rows = tmp_path_factory.mktemp("large"), int(GIGABYTES * 1e9 / ROW_BYTES)
    for name, number in (("small", max(60_000, rows // 100)), ("large", rows)):
        write_rows(folder / f"{name}.csv", number)
    yield folder
    for name in ("small", "large"):
        (folder / f"{name}.csv").unlink()


def test_predicting_takes_no_more_memory_for_more_rows(files, book_run, tmp_path):
    most = {}
    for name in ("small", "large"):
        command = [sys.executable, "-m", "modeling_rnnsent.cli", "predict", book_run, "--input", files / f"{name}.csv"]
        most[name] = most_memory(*command, "--output", tmp_path / f"{name}.jsonl", folder=tmp_path)
    with open(files / "large.csv", "rb") as rows, open(tmp_path / "large.jsonl", "rb") as answers:
        assert sum(1 for _ in rows) - 1 == sum(1 for _ in answers)
    print(most)
    assert most["large"] - most["small"] < 50


def test_training_keeps_under_a_hundred_bytes_of_a_row(files, reviews, tmp_path):
    most = {}
    for name in ("small", "large"):
        flags = [f"--train_file={files / name}.csv", f"--validation_file={reviews / 'validation.csv'}", "--max_steps=5"]
        flags += ["--train_sampling_strategy=group_by_length", f"--output_dir={tmp_path / name}", *SMALL]
        most[name] = most_memory(sys.executable, "train.py", *flags, folder=tmp_path)
    print(most)
    assert most["large"] - most["small"] < 30 + 100 * GIGABYTES
