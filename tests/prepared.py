"""
Programs in processes of their own that need not import the libraries first, which takes longer than most of what the
tests ask them: a server that has imported them forks for each.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path

import pytest

TIMEOUT = 300  # seconds
LIBRARIES = ["accelerate", "datasets", "evaluate", "matplotlib.figure", "sklearn.metrics", "transformers.trainer"]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(LIBRARIES)


class Prepared:
    """
    A Python script that runs, offline and with its output kept, used like a `subprocess.Popen`.

    Args:
        command (`list[str]`): The script and its arguments.
        cwd (`Path`): Where it runs.
        input (`bytes`): Its standard input.
        environment: Variables beside those of this process, none of which a library reads when it is imported.
    """

    def __init__(self, command: list[str], cwd: Path, input: bytes = b"", **environment: str):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_HUB_OFFLINE", "1")  # the server reads it, when it imports the library
            forkserver.ensure_running()
            environment = {**os.environ, **environment}
        self.command = command
        self.folder = tempfile.TemporaryDirectory()
        self.streams = [Path(self.folder.name, name) for name in ("stdin", "stdout", "stderr")]
        for stream in self.streams:  # here, for a process may be killed before it has opened any
            stream.write_bytes(input if stream.name == "stdin" else b"")
        self.process = _context.Process(target=_run, args=(command, cwd, environment, self.streams))
        self.process.start()
        atexit.register(self.kill)  # a test that failed may have left it, which multiprocessing would wait for

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int):
        if self.poll() is None:
            os.kill(self.process.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = TIMEOUT) -> tuple[str, str]:
        """What it printed on standard output and standard error, when it has ended, which it must within the time."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            self.process.join()
            raise subprocess.TimeoutExpired(self.command, timeout)
        output, errors = (stream.read_text(encoding="utf-8") for stream in self.streams[1:])
        self.folder.cleanup()
        return output, errors

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode


def _run(command: list[str], cwd: Path, environment: dict[str, str], streams: list[Path]):
    for descriptor, (stream, mode) in enumerate(zip(streams, (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY))):
        os.dup2(os.open(stream, mode), descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    script = Path(command[0]).absolute()
    sys.argv[:] = command
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
