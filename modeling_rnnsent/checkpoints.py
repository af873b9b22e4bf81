"""
Where a run writes: a directory that belongs to one run at a time, with checkpoints that are whole or absent.

A checkpoint is written beside its place, with the digest of every file, and renamed when it is complete; it is renamed
away before it is removed. So whatever stops a run, a directory named `checkpoint-N` is one to go on from, unless the
disk has changed it since, which the digests tell.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from .arguments import RNNSentTrainingArguments
from .errors import InputError
from .locking import exclusive

logger = logging.get_logger(__name__)

TRAIN_RESULTS, RECIPE = "train_results.json", "recipe.yaml"
UNFINISHED = ".unfinished"
SETTINGS = "run_settings.json"
DATA = "data"  # the setting that stands for what the data holds, a digest
PROCESSES = "num_processes"  # and the one for how many share a step's texts
_DIGESTS, _STATE, _LOCK = "digests.json", "trainer_state.json", ".lock"
METRICS = (TRAIN_RESULTS, "eval_results.json", "test_results.json", _STATE)
# What a run that is taken up may have otherwise: how long it goes on, what it shows and keeps, how fast it is. What its
# data holds is known when that is read, and `check_data` is asked then.
_MAY_DIFFER = ("num_train_epochs", "max_steps", "early_stopping_patience", DATA)
_IN_PASSING = ("preprocessing_num_workers",)
_IN_PASSING_BY_START = ("save_", "eval_", "logging_", "hub_", "dataloader_", "per_device_eval_")


@contextmanager
def locked(folder: str) -> Iterator[None]:
    """
    Keeps `folder` (made where there is none) to this run; the lock goes when the process ends, however it ends.

    Raises:
        InputError: where another run writes there, or `folder` is a file.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise InputError(f"the output directory {folder!r} is a file: name another.")
    is_new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    refusal = f"another run is writing into the output directory {folder!r}: wait for its end, or name another."
    try:
        with exclusive(path / _LOCK, refusal):
            shutil.rmtree(path / UNFINISHED, ignore_errors=True)  # of a run that was killed while it wrote
            try:
                yield
            finally:
                shutil.rmtree(path / UNFINISHED, ignore_errors=True)
    finally:
        if is_new and not any(path.iterdir()):  # a run that came to nothing leaves nothing
            path.rmdir()


def is_finished(arguments: RNNSentTrainingArguments) -> bool:
    """Whether `output_dir` holds a finished run."""
    return (Path(arguments.output_dir) / TRAIN_RESULTS).exists()


def find_checkpoint(arguments: RNNSentTrainingArguments, settings: dict[str, Any] | None = None) -> str | None:
    """
    Sees to it that a run overwrites nothing that it was not told to, and finds where it goes on.

    Args:
        arguments ([`RNNSentTrainingArguments`]): `output_dir`, `overwrite_output_dir`, `resume_from_checkpoint` (a
            directory, or `last`: the last one that is whole; with `overwrite_output_dir`, of this run, if there is
            one).
        settings (`dict`, *optional*): The run's, which must be those of the run that wrote the checkpoint. None: any.

    Returns:
        `str`, *optional*: the checkpoint to go on from.

    Raises:
        InputError: where `output_dir` holds a run or other files, or the checkpoint named is not whole.
    """
    folder = Path(arguments.output_dir)
    resume = arguments.resume_from_checkpoint
    checkpoints = list_checkpoints(folder)
    own = [RECIPE, TRAIN_RESULTS, *(f"{path.name}/{SETTINGS}" for path in checkpoints)]
    if not any((folder / name).exists() for name in own):
        refuse_strange_files(
            folder, f"output_dir {arguments.output_dir!r} holds other files than a run's", "--output_dir"
        )
    if arguments.overwrite_output_dir:
        if resume not in (None, "last"):
            raise InputError("give one of overwrite_output_dir, to start again, and resume_from_checkpoint, to go on.")
        try:
            found = _last_whole(folder, checkpoints) if resume == "last" else None
            check_settings(found, settings)
            return found
        except InputError:  # what is to be overwritten is another run
            return None
    if is_finished(arguments):
        raise InputError(
            f"output_dir {arguments.output_dir!r} holds a finished run: add --overwrite_output_dir to replace it, or "
            "name another --output_dir."
        )
    if resume == "last":
        resume = _last_whole(folder, checkpoints)
        check_settings(resume, settings)
        return resume
    if resume is not None:
        check_checkpoint(resume)
        check_settings(resume, settings)
        return resume
    if checkpoints:
        raise InputError(
            f"output_dir {arguments.output_dir!r} holds checkpoints of a run that did not finish: add "
            "--resume_from_checkpoint last to go on, or --overwrite_output_dir to start again."
        )
    return None


def refuse_strange_files(folder: Path, holds: str, flag: str):
    """Nothing tells what would be written there from what somebody else has there, a README.md or pictures."""
    strange = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    strange = [name for name in strange if name not in (_LOCK, UNFINISHED)]
    if strange:
        raise InputError(f"{holds}, {strange[0]!r} for one: name another {flag}, new or empty.")


def _last_whole(folder: Path, checkpoints: list[Path]) -> str | None:
    for checkpoint in reversed(checkpoints):
        try:
            check_checkpoint(str(checkpoint))
            return str(checkpoint)
        except InputError as error:
            is_first = checkpoint == checkpoints[0]
            logger.warning(f"{error}" if is_first else f"{error} The one before it is tried.")
    logger.warning(f"{folder} holds no {'whole ' if checkpoints else ''}checkpoint: the run starts from the beginning.")
    return None


def clear_output_dir(arguments: RNNSentTrainingArguments, reports: tuple[str, ...]):
    """
    Removes what an earlier run left in `output_dir` beside the model and its recipe, which new ones replace: its
    checkpoints, its metrics and `reports`, names of files. The recipe tells, if nothing comes of the new run, that the
    directory is a run's. To be called when all else has been checked.
    """
    folder = Path(arguments.output_dir)
    for name in (*METRICS, *reports):
        (folder / name).unlink(missing_ok=True)
    for checkpoint in list_checkpoints(folder):
        remove_checkpoint(checkpoint)


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint directories in the order of their steps."""
    found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.split("-")[-1].isdigit()]
    return sorted(found, key=lambda path: int(path.name.split("-")[-1]))


def finish_checkpoint(unfinished: Path, place: Path):
    """Seals a checkpoint that is written, and moves it to its place."""
    digests = {path.name: _digest(path) for path in sorted(unfinished.iterdir())}
    (unfinished / _DIGESTS).write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
    for path in unfinished.iterdir():  # on the disk before its name is: a power cut loses no more than a kill
        _sync(path)
    _sync(unfinished)
    if place.exists():  # not whole, or the run would have gone on from it
        remove_checkpoint(place)
    os.rename(unfinished, place)
    _sync(place.parent)


def remove_checkpoint(checkpoint: Path):
    """Removes a checkpoint, which is whole until it has lost its name."""
    removed = checkpoint.parent / UNFINISHED / f"removed-{checkpoint.name}"
    shutil.rmtree(removed, ignore_errors=True)
    removed.parent.mkdir(exist_ok=True)
    os.rename(checkpoint, removed)
    shutil.rmtree(removed, ignore_errors=True)


def remove_checkpoints(last: Path, number: int | None, best: str | None):
    """
    Removes checkpoints beyond `number` (None: keeps all), but never the `last` one, just written, and the best one.
    First go those of later steps, which the run did not go on from, then the oldest.
    """
    if not number or number < 1:
        return
    checkpoints = list_checkpoints(last.parent)
    spare = [path for path in checkpoints if path.name not in (last.name, Path(best or "").name)]
    spare.sort(key=lambda path: checkpoints.index(path) < checkpoints.index(last))
    for path in spare[: len(checkpoints) - max(number, len(checkpoints) - len(spare))]:
        remove_checkpoint(path)


def check_checkpoint(folder: str):
    """
    Raises `InputError` where a training checkpoint lacks a file, holds one that was changed since it was written, or
    has a best checkpoint of its run that does, and where it is of the model alone.
    """
    path = Path(folder)
    _check_files(path)
    if _read_json(path, SETTINGS).get("save_only_model"):
        raise InputError(f"the checkpoint {folder} was saved with save_only_model: it has no optimizer to go on with.")
    best = _read_json(path, _STATE).get("best_model_checkpoint")
    best = path.parent / Path(best).name if best else path
    if best.name != path.name and best.is_dir():
        _check_files(best)


def _check_files(folder: Path):
    if not folder.is_dir():
        raise InputError(f"resume_from_checkpoint {str(folder)!r}: there is no such directory.")
    for name, digest in _read_json(folder, _DIGESTS).items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"the checkpoint {folder} is not whole: {name} is missing.")
        if _digest(file) != digest:
            raise InputError(f"the checkpoint {folder} is not whole: {name} is not what was written.")


def is_in_passing(name: str) -> bool:
    """Whether a setting is of what a run shows and keeps and of how fast it is, not of what it learns."""
    return name in _IN_PASSING or name.startswith(_IN_PASSING_BY_START)


def check_settings(checkpoint: str | None, settings: dict[str, Any] | None):
    """Raises `InputError` where a checkpoint was written by a run of other settings, but for how long it goes on."""
    if checkpoint is None or settings is None:
        return
    held = _read_json(Path(checkpoint), SETTINGS)
    settings = json.loads(json.dumps(settings))
    for name in sorted({*held, *settings}):
        if name in _MAY_DIFFER or is_in_passing(name):
            continue
        if held.get(name) != settings.get(name):
            raise InputError(
                f"the checkpoint {checkpoint} is of a run with {name}={held.get(name)}, this one has "
                f"{name}={settings.get(name)}: go on with the settings that it began with, or start again with "
                "--overwrite_output_dir."
            )


def check_data(checkpoint: str, digest: str):
    """Raises `InputError` where a checkpoint's words, classes, texts or labels are not those that the data has now."""
    if _read_json(Path(checkpoint), SETTINGS).get(DATA) != digest:
        raise InputError(
            f"the checkpoint {checkpoint} is of other data: texts or labels have changed since. Go on with the data "
            "that it began with, or start again with --overwrite_output_dir and without --resume_from_checkpoint."
        )


def _read_json(folder: Path, name: str) -> dict:
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"the checkpoint {folder} is not whole: {name} is missing.") from None
    except ValueError as error:
        raise InputError(f"the checkpoint {folder} is not whole: {name} is not readable ({error}).") from None
    if not isinstance(found, dict) or (name == _DIGESTS and _STATE not in found):
        raise InputError(f"the checkpoint {folder} is not whole: {name} is not what was written.")
    return found


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path):
    if path.is_dir() and os.name == "nt":  # Windows opens no directories
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows syncs what may be written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
