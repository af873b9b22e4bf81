"""Small real data, real processes, and one trained model that several tests look at."""

import atexit
import os
import shutil
import tempfile

# Tests run beside each other, one process a core, and so do the programs that they start: two threads each would spend
# their time waiting for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing that another session has made is taken for what this one makes. Tests beside each other share one folder.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)
    # Nor does it matter what the home directory says: accelerate's settings and models' code are kept there.
    os.environ["HF_HOME"] = os.environ["HF_DATASETS_CACHE"]
    os.environ.pop("NO_COLOR", None)

import random  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import pandas  # noqa: E402
import pytest  # noqa: E402
from prepared import TIMEOUT, Prepared  # noqa: E402

ROOT = Path(__file__).parent.parent
RNNSENT = str(Path(sys.executable).with_name("rnnsent"))
POSITIVE = ("wonderful", "loved", "great", "brilliant", "touching")
NEGATIVE = ("awful", "hated", "boring", "terrible", "dull")
FILLER = ["the", "film", "was", "a", "story", "about", "people", "and", "their", "lives", "in", "some", "town"]
# A small model: what the tests look at is what a run does, not how well.
SMALL = ("--embedding_size=16", "--hidden_size=16", "--per_device_train_batch_size=16", "--num_threads=1")


def make_reviews(count: int, seed: int = 0) -> pandas.DataFrame:
    """Reviews of 1 to 40 words, half of each class, told apart by one word or two."""
    generator = random.Random(seed)
    rows = []
    for index in range(count):
        words = generator.choices(FILLER, k=generator.randint(0, 38))
        for _ in range(generator.randint(1, 2)):
            words.insert(generator.randint(0, len(words)), generator.choice((NEGATIVE, POSITIVE)[index % 2]))
        rows.append({"text": " ".join(words), "label": index % 2})
    return pandas.DataFrame(rows)


def run(*command, check=True, cwd=ROOT, input="", **environment) -> subprocess.CompletedProcess:
    """Runs a program as a user would, offline."""
    command = [str(part) for part in command]
    if command[0] == "rnnsent":
        command[0] = RNNSENT
    script = command[1:] if command[0] == sys.executable else command
    if not environment and (script[0] == RNNSENT or script[0].endswith(".py")):
        process = Prepared(script, cwd, input.encode())
        printed = process.communicate()
        result = subprocess.CompletedProcess(command, process.returncode, *printed)
    else:
        result = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
            input=input,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def train(*flags, check=True, **environment) -> subprocess.CompletedProcess:
    return run(sys.executable, "train.py", *flags, check=check, **environment)


@pytest.fixture(scope="session")
def reviews(tmp_path_factory) -> Path:
    """A folder with train.csv (400 reviews), validation.csv (60) and test.csv (80)."""
    folder = tmp_path_factory.mktemp("reviews")
    for seed, (name, count) in enumerate({"train": 400, "validation": 60, "test": 80}.items()):
        make_reviews(count, seed).to_csv(folder / f"{name}.csv", index=False)
    return folder


@pytest.fixture(scope="session")
def book_run(reviews, tmp_path_factory) -> Path:
    """What `train.py configuration/book.yaml` leaves on small data."""
    output = tmp_path_factory.mktemp("runs") / "book"
    result = train(
        "configuration/book.yaml",
        f"--train_file={reviews / 'train.csv'}",
        f"--validation_file={reviews / 'validation.csv'}",
        f"--test_file={reviews / 'test.csv'}",
        "--num_train_epochs=6",
        "--learning_rate=0.01",
        f"--output_dir={output}",
    )
    (output.parent / "log.txt").write_text(result.stdout)
    (output.parent / "errors.txt").write_text(result.stderr)
    return output
