"""What goes wrong because of what was given: one clear line and a non-zero exit instead of a traceback."""

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tqdm import tqdm


class InputError(ValueError):
    """Something given by the user cannot be used; the message says what was given and what is allowed."""


class Diverged(InputError):
    """A training went astray: its numbers are no longer finite."""


class Interrupted(KeyboardInterrupt):
    """
    The run was told to stop; the message says what is saved and how to go on.

    Args:
        message (`str`): What to say.
        signal_number (`int`, *optional*, defaults to SIGINT): What told it.
    """

    def __init__(self, message: str, signal_number: int | None = None):
        super().__init__(message)
        self.status = 128 + (signal_number or signal.SIGINT)


@contextmanager
def one_line_errors():
    """Ends the program with `error: ...` on standard error and status 1 for errors that the input explains."""
    try:
        yield
        sys.stdout.flush()  # here, where a reader that is gone is no surprise
    except BrokenPipeError:  # whoever read the output has had enough, `head` for example
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python's own last flush is to find no fault
        sys.exit(128 + 13)
    except (MemoryError, RuntimeError) as error:
        _, of_torch, what = str(error).rpartition("DefaultCPUAllocator: ")
        # On a GPU torch has an error of its own.
        if not isinstance(error, MemoryError) and not of_torch and type(error).__name__ != "OutOfMemoryError":
            raise
        what = " ".join(what.split(". ")[0].split())
        _print_error(f"the memory is not enough{': ' if what else ''}{what}")
        sys.exit(1)
    except (InputError, OSError, SafetensorError, StrictDataclassError) as error:
        cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        _print_error(" ".join(str(cause).split()))
        sys.exit(1)
    except KeyboardInterrupt as error:
        _print_error(str(error) or "interrupted")
        sys.exit(getattr(error, "status", 128 + signal.SIGINT))


def _print_error(message: str):
    for bar in list(getattr(tqdm, "_instances", ())):  # what is open would have the message in its own line
        bar.close()
    print(f"error: {message}", file=sys.stderr)


@contextmanager
def loading(what: str, name: str):
    """Says in one line that what a directory or Hub repository holds cannot be loaded."""
    is_there, parts = Path(name).exists(), Path(name).parts
    if not is_there and (name.startswith((".", "/", "~")) or len(parts) > 2 or parts[:1] == ("runs",)):
        raise InputError(f"cannot load the {what} {name!r}: there is no such directory.")
    if Path(name).is_dir() and what == "model" and not Path(name, "config.json").is_file():
        raise InputError(f"cannot load the {what} {name!r}: there is no config.json in that directory.")
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # every file has its own way to be broken
        cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        where = "" if is_there else "there is no such directory, and as a name on the Hub: "
        raise InputError(f"cannot load the {what} {name!r}: {where}{cause}") from error
