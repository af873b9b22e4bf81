"""
Programs in processes of their own that need not import the libraries first, which takes longer than most of what the
tests ask them: a server that has imported them forks for each.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path

import pytest

LIBRARIES = ["accelerate", "datasets", "evaluate", "matplotlib.figure", "sklearn.metrics", "transformers.trainer"]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(LIBRARIES)


def run_prepared(command: list[str], cwd: Path, timeout: float) -> subprocess.CompletedProcess:
    """A Python script and its arguments, run offline as `subprocess.run` with captured text would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")  # the server reads it, when it imports the library
        forkserver.ensure_running()
        environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        process = _context.Process(target=_run, args=(command, cwd, environment, streams))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout)
        output, errors = (stream.read_text(encoding="utf-8") for stream in streams)
    return subprocess.CompletedProcess(command, process.exitcode, output, errors)


def _run(command: list[str], cwd: Path, environment: dict[str, str], streams: list[Path]):
    for descriptor, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    script = Path(command[0]).absolute()
    sys.argv[:] = command
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
