"""How a run was started: its processes, and the threads that each computes with."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from accelerate import PartialState
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import broadcast_object_list
from transformers.utils import logging

from .arguments import RNNSentTrainingArguments
from .errors import InputError

logger = logging.get_logger(__name__)

T = TypeVar("T")


def use_threads(arguments: RNNSentTrainingArguments):
    """
    Lets torch compute with every core, shared between this machine's processes, or with `num_threads`.

    `accelerate launch` tells a process to use one thread (OMP_NUM_THREADS=1) where nobody said otherwise, which on two
    cores costs a third of the speed. Any other value is somebody's wish and stays.
    """
    if arguments.num_threads is not None:
        if arguments.num_threads < 1:
            raise InputError(f"num_threads must be at least 1, got {arguments.num_threads}.")
        torch.set_num_threads(arguments.num_threads)
    elif os.environ.get("OMP_NUM_THREADS") == "1" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        # The cores that this process may run on: a container or a batch system often gives fewer than there are.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cores = min(cores, psutil.cpu_count(logical=False) or cores)
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def warn_of_missing_processes(arguments: RNNSentTrainingArguments):
    """
    Says so where a run has fewer processes than `accelerate launch` was asked for.

    Without GPUs it starts one, whatever `--num_processes` or its configuration file say.
    """
    asked = _processes_asked_for()
    if asked is not None and asked > arguments.world_size and arguments.should_log:
        logger.warning(
            f"accelerate launch was asked for {asked} processes and started {arguments.world_size}: without GPUs it "
            f"starts no more. This run has {arguments.world_size}. On CPUs, several are started by: "
            f"torchrun --nproc_per_node {asked} train.py ..."
        )


def _processes_asked_for() -> int | None:
    """The number of processes that the command line or the configuration of `accelerate launch` names."""
    try:
        words = psutil.Process().parent().cmdline()
        start = next(
            index
            for index, word in enumerate(words[:4])
            if Path(word).name in ("launch", "accelerate-launch", "accelerate.commands.launch")
        )
        if "accelerate" not in " ".join(words[: start + 1]):
            return None
        launch, _ = launch_command_parser().parse_known_args(words[start + 1 :])
        file = launch.config_file or default_config_file
        if launch.num_processes is None and os.path.exists(file):
            launch.num_processes = load_config_from_file(file).num_processes
        return launch.num_processes
    except (StopIteration, psutil.Error, AttributeError, SystemExit, ValueError, TypeError):
        return None  # not started by it, or by one that this version does not know how to read


def from_main_process(compute: Callable[[], T]) -> T:
    """What `compute` returns in the main process, which alone runs it, for every process. It must be picklable."""
    result = [compute() if PartialState().is_main_process else None]
    broadcast_object_list(result)
    return result[0]
