"""Places that belong to one process at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from .errors import InputError


@contextmanager
def exclusive(path: Path, refusal: str) -> Iterator[None]:
    """
    Keeps to this process what the file `path`, which is made, stands for, until it ends, however it ends.

    Raises:
        InputError: where another process has it, with the text of `refusal`.
    """
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(refusal) from None
    try:
        yield
    finally:
        if os.name == "nt":  # where what is open cannot be removed
            lock.release()
        with suppress(OSError):
            path.unlink(missing_ok=True)  # while it is locked: once it is not, it may be another's
        lock.release()
