"""`transformers.Trainer` for RNNSent models: batches by length, checkpoints that are whole or absent."""

import json
import os
import shutil
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError, safe_open
from torch.utils.data import SequentialSampler
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from .arguments import RNNSentTrainingArguments
from .errors import InputError

TRAIN_RESULTS = "train_results.json"
_CHECKPOINT_FILES = ("config.json", "model.safetensors", "trainer_state.json", "optimizer.pt", "scheduler.pt")


class RNNSentTrainer(Trainer):
    """
    A `Trainer` with three differences.

    Evaluation and prediction read their data in order: `Trainer`'s length-grouped sampler shuffles them as well
    (transformers issue 48025). A checkpoint that cannot be written to its end is removed again, so that the one before
    it is the last. The model card is left to `reports`.
    """

    def _get_eval_sampler(self, eval_dataset):
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def create_model_card(self, *args, **kwargs):
        """Nothing: when it pushes to the Hub, `Trainer` would replace the card of `reports.write_model_card`."""

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        existed = folder.exists()
        try:
            super()._save_checkpoint(model, trial)
        except BaseException as error:
            if self.args.should_save and not existed:
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, (OSError, SafetensorError, RuntimeError)):
                last = get_last_checkpoint(self.args.output_dir)
                kept = f"the last good one is {last}" if last else "there is none before it"
                raise OSError(f"could not save the checkpoint {folder}: {error}; {kept}") from error
            raise


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
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(1, (psutil.cpu_count(logical=False) or os.cpu_count() or 1) // processes))


def prepare_output_dir(arguments: RNNSentTrainingArguments) -> str | None:
    """
    Sees to it that a run overwrites nothing that it was not told to.

    Args:
        arguments ([`RNNSentTrainingArguments`]): `output_dir`, `overwrite_output_dir`, `resume_from_checkpoint` (a
            directory, or `last`).

    Returns:
        `str`, *optional*: the checkpoint to go on from.

    Raises:
        InputError: where `output_dir` holds a run or other files, or the checkpoint is not whole.
    """
    folder = Path(arguments.output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output_dir {arguments.output_dir!r} is a file.")
    checkpoints = sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"))
    finished = (folder / TRAIN_RESULTS).exists()
    resume = arguments.resume_from_checkpoint
    if resume is not None:
        if resume == "last":
            resume = get_last_checkpoint(arguments.output_dir) if folder.is_dir() else None
            if resume is None:
                print(f"{arguments.output_dir} holds no checkpoint: the run starts from the beginning.")
        if resume is not None:
            check_checkpoint(resume)
        return resume
    if arguments.overwrite_output_dir:
        if arguments.should_save:
            for checkpoint in checkpoints:
                shutil.rmtree(checkpoint)
            (folder / TRAIN_RESULTS).unlink(missing_ok=True)
        return None
    if finished:
        raise InputError(
            f"output_dir {arguments.output_dir!r} holds a finished run: add --overwrite_output_dir to replace it, or "
            "name another --output_dir."
        )
    if checkpoints:
        raise InputError(
            f"output_dir {arguments.output_dir!r} holds checkpoints of a run that did not finish: add "
            "--resume_from_checkpoint last to go on, or --overwrite_output_dir to start again."
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"output_dir {arguments.output_dir!r} holds other files: name another --output_dir, or add "
            "--overwrite_output_dir to write among them."
        )
    return None


def check_checkpoint(folder: str):
    """Raises `InputError` where a training checkpoint lacks a file or holds a truncated one."""
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"resume_from_checkpoint {folder!r}: there is no such directory.")
    for name in _CHECKPOINT_FILES:
        file = path / name
        if not file.is_file():
            raise InputError(f"the checkpoint {folder} is not whole: {name} is missing.")
        try:
            if name.endswith(".safetensors"):
                with safe_open(file, framework="pt"):
                    pass
            elif name.endswith(".json"):
                json.loads(file.read_text(encoding="utf-8"))
            else:
                torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # each format has its own ways to be broken
            raise InputError(f"the checkpoint {folder} is not whole: {name} is not readable ({error}).") from error
