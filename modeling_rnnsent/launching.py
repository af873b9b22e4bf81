"""How a run was started, its processes and the threads that each computes with; and how it is told to stop."""

import gc
import os
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from torch import distributed
from transformers.utils import logging

from .arguments import RNNSentTrainingArguments
from .errors import InputError

logger = logging.get_logger(__name__)

T = TypeVar("T")
# How long processes wait for what one of them does for all: document vectors or a large teacher may take an hour.
_PATIENCE = timedelta(days=1)


def use_threads(arguments: RNNSentTrainingArguments):
    """
    Lets torch compute with every core, shared between this machine's processes, or with `num_threads`.

    `accelerate launch` and `torchrun` tell a process to use one thread (OMP_NUM_THREADS=1) where nobody said otherwise,
    which on two cores costs a third of the speed. What somebody said stays.

    Args:
        arguments ([`RNNSentTrainingArguments`]): `num_threads`, threads of each process. None: as above.

    Raises:
        InputError: where `num_threads` is below 1.
    """
    if arguments.num_threads is not None:
        if arguments.num_threads < 1:
            raise InputError(f"num_threads must be at least 1, got {arguments.num_threads}.")
        torch.set_num_threads(arguments.num_threads)
    elif (
        os.environ.get("OMP_NUM_THREADS") == "1"
        and os.environ.keys() & {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"}
        and not _threads_were_said()
    ):
        cores = min(usable_cores(), psutil.cpu_count(logical=False) or usable_cores())
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def usable_cores() -> int:
    """The cores that this process may run on: a container or a batch system often gives fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def warn_of_missing_processes(arguments: RNNSentTrainingArguments):
    """
    Says so where a run has fewer processes than `accelerate launch` was asked for.

    Without GPUs it starts one, whatever `--num_processes` or its configuration file say, but for `--multi_gpu`.
    """
    asked = _processes_asked_for()
    if asked is not None and asked > arguments.world_size and arguments.should_log:
        logger.warning(
            f"accelerate launch was asked for {asked} processes and started {arguments.world_size}: without GPUs it "
            f"starts no more. This run has {arguments.world_size}. On CPUs, several are started by: "
            f"accelerate launch --multi_gpu --num_processes {asked} train.py ..."
        )


def _threads_were_said() -> bool:
    """Whether OMP_NUM_THREADS was set before the launcher started, or it was told a number of threads."""
    launch = _launch_arguments()
    try:
        environment = _launcher().environ()
    except (psutil.Error, AttributeError, OSError):
        environment = {}
    return "OMP_NUM_THREADS" in environment or (launch is not None and launch.num_cpu_threads_per_process is not None)


def _processes_asked_for() -> int | None:
    """The number of processes that the command line or the configuration of `accelerate launch` names."""
    launch = _launch_arguments()
    if launch is None:
        return None
    file = launch.config_file or default_config_file
    try:
        if launch.num_processes is None and os.path.exists(file):
            launch.num_processes = load_config_from_file(file).num_processes
    except (AttributeError, ValueError, TypeError):
        return None  # a file that this version does not know how to read
    return launch.num_processes


def _launcher() -> psutil.Process | None:
    """The process that started this one; in a virtual environment of Windows a Python stands between that starts it."""
    parent = psutil.Process().parent()
    return parent.parent() if parent and os.name == "nt" and sys.prefix != sys.base_prefix else parent


def _launch_arguments() -> Namespace | None:
    """What `accelerate launch` was told on its command line; None where another program started this process."""
    try:
        words = _launcher().cmdline()
        start = next(
            index
            for index, word in enumerate(words[:4])
            if Path(word).name in ("launch", "accelerate-launch", "accelerate.commands.launch")
        )
        if "accelerate" not in " ".join(words[: start + 1]):
            return None
        return launch_command_parser().parse_known_args(words[start + 1 :])[0]
    except (StopIteration, psutil.Error, AttributeError, SystemExit):
        return None


class StopRequest:
    """
    Whether SIGINT (Ctrl-C) or SIGTERM have come. It is remembered: some libraries swallow the exception that a signal
    raises within them.
    """

    def __init__(self):
        self.signal: int | None = None
        self.is_patient = False

    @contextmanager
    def heeded(self, is_patient: bool) -> Iterator[None]:
        """
        Heeds signals: a first one while `is_patient` waits to be asked for, any other raises `KeyboardInterrupt`.
        """
        before_patience, self.is_patient = self.is_patient, is_patient
        in_main = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handlers
        signals = (signal.SIGINT, signal.SIGTERM) if in_main else ()
        if in_main and signal.getsignal(signal.SIGINT) != self._take:
            self.signal = None  # what stopped earlier work, in a notebook, is no word to this
        before = [signal.signal(number, self._take) for number in signals]
        try:
            yield
        finally:
            self.is_patient = before_patience
            for number, handler in zip(signals, before):
                signal.signal(number, handler)

    def _take(self, number: int, frame):
        is_first, self.signal = self.signal is None, number
        if not (is_first and self.is_patient):
            raise KeyboardInterrupt
        if os.environ.get("RANK", "0") == "0":
            # Not `print`, which the signal may have come in the middle of.
            os.write(2, b"\nStopping as soon as the work is saved. Once more: at once, without saving it.\n")


stop_request = StopRequest()


@contextmanager
def process_group() -> Iterator[None]:
    """
    Ends the processes' connection with the work. Left open, a thread of it may ask the ended interpreter to free a
    tensor, and the process, which had done everything, ends with SIGABRT (5 of 72 runs on a busy machine).
    """
    try:
        yield
    finally:
        if distributed.is_available() and distributed.is_initialized():
            gc.collect()  # a wrapped model that is still about would keep the connection's threads
            distributed.destroy_process_group()


@contextmanager
def main_process_first() -> Iterator[None]:
    """
    A part of the work that each machine's main process does before its others, which find it done (in a cache) then and
    wait as long as it takes: `TrainingArguments.main_process_first` waits for half an hour on a CPU. An error that the
    input explains is raised in every process: a machine whose file is missing would have the others wait for it.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        yield
        return
    group = distributed.new_group(timeout=_PATIENCE, backend="gloo")
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not is_first:
        distributed.barrier(group)
    error = None
    try:
        yield
    except (InputError, OSError) as found:
        error = found
    finally:
        if is_first:
            distributed.barrier(group)
    messages = [None] * distributed.get_world_size()
    distributed.all_gather_object(messages, error and (str(error) or repr(error)), group)
    distributed.destroy_process_group(group)
    if any(messages):
        raise error or InputError(next(filter(None, messages)))


def from_main_process(compute: Callable[[], T]) -> T:
    """
    What `compute` returns in the main process, which alone runs it, for every process. It must be picklable. An error
    that the input explains is raised in every process, so that none waits for the others.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return compute()
    # The processes' own connection gives up after half an hour on a CPU, whatever `ddp_timeout` says.
    group = distributed.new_group(timeout=_PATIENCE, backend="gloo")
    result = [None, None]
    if distributed.get_rank() == 0:
        try:
            result[0] = compute()
        except (InputError, OSError) as error:
            result[1] = InputError(str(error))
    distributed.broadcast_object_list(result, src=0, group=group)
    distributed.destroy_process_group(group)
    if result[1] is not None:
        raise result[1]
    return result[0]
