"""`transformers.Trainer` for RNNSent models: batches by length, checkpoints that are whole or absent."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from datasets import Dataset
from huggingface_hub import upload_folder
from safetensors import safe_open
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from .arguments import RNNSentTrainingArguments
from .data import Labels
from .errors import InputError
from .objectives import Objectives, unlabeled_batches, watched
from .optimization import LazyAdamW, clip_gradients, lazy_embedding

logger = logging.get_logger(__name__)

# From this many elements on, rows of an embedding are updated when they are read. Below, a dense update takes less.
LAZY_ELEMENTS = 1 << 22
TRAIN_RESULTS = "train_results.json"
_CHECKPOINT_FILES = ("config.json", "model.safetensors", "trainer_state.json", "optimizer.pt", "scheduler.pt")


class RNNSentTrainer(Trainer):
    """
    A `Trainer` with six differences.

    Evaluation and prediction read their data in order: `Trainer`'s length-grouped sampler shuffles them as well
    (transformers issue 48025). A checkpoint that cannot be written to its end is removed again, so that the one before
    it is the last. The model card is left to `reports`, and what is pushed to the Hub is the finished directory. On a
    CPU, AdamW is [`LazyAdamW`] for a large embedding, so that a step does not grow with the vocabulary. A classifier's
    step has the terms of [`Objectives`] that the arguments give a weight.

    Args:
        unlabeled_dataset (`Dataset`, *optional*): Texts for the terms that need no label; with a teacher, `labels` are
            its probabilities. None: the training texts.
    """

    _lazy_embedding: lazy_embedding | None = None

    def __init__(self, *args, unlabeled_dataset: Dataset | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.objectives = Objectives(self.args, self.model)
        self.unlabeled_dataset = self.train_dataset if unlabeled_dataset is None else unlabeled_dataset
        self._unlabeled: Iterator[dict[str, torch.Tensor]] | None = None

    def training_step(self, model, inputs, num_items_in_batch=None):
        objectives = self.objectives
        if not objectives.are_set:
            return super().training_step(model, inputs, num_items_in_batch)
        with watched(objectives.embedding) as embeddings:
            loss = super().training_step(model, inputs, num_items_in_batch)
        unlabeled = self._prepare_inputs(self._next_unlabeled()) if objectives.need_unlabeled else None
        for term in objectives.terms(model, self._prepare_inputs(inputs), embeddings[0], unlabeled):
            term = term / self.current_gradient_accumulation_steps
            self.accelerator.backward(term)
            loss = loss + term.detach()
        return loss

    def _next_unlabeled(self) -> dict[str, torch.Tensor]:
        if self._unlabeled is None:
            done = self.state.global_step * self.args.gradient_accumulation_steps
            processes = self.args.world_size
            self._unlabeled = unlabeled_batches(
                self.unlabeled_dataset,
                self.data_collator,
                self.args.unlabeled_batch_size or self.args.per_device_train_batch_size,
                seed=self.args.seed,
                start=done * processes + self.args.process_index,
                step=processes,
            )
        return next(self._unlabeled)

    def _get_train_sampler(self, train_dataset=None):
        # The data set as it is: the one that `Trainer` hands over has lost its column of lengths.
        sampler = super()._get_train_sampler(self.train_dataset)
        if getattr(sampler, "lengths", None) is not None:
            sampler.lengths = list(sampler.lengths)  # a column of the data set is slow to look up row by row
        return sampler

    def create_optimizer(self, model=None):
        if self.optimizer is None and self._takes_lazy_optimizer():
            _, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer_cls_and_kwargs = (LazyAdamW, settings)
            optimizer = super().create_optimizer(model)
            self._lazy_embedding = lazy_embedding(self.model.get_input_embeddings(), optimizer)
        return super().create_optimizer(model)

    def _takes_lazy_optimizer(self) -> bool:
        embedding = self.model.get_input_embeddings()
        return (
            self.args.device.type == "cpu"
            and self.args.optim in ("adamw_torch", "adamw_torch_fused")
            and not self.args.optim_args
            and isinstance(embedding, nn.Embedding)
            and embedding.weight.numel() >= LAZY_ELEMENTS
            and embedding.weight.requires_grad
            and not self.model.config.tie_word_embeddings
        )

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._lazy_embedding is not None:
                self._lazy_embedding.remove()

    def _load_best_model(self):
        self._settle()  # first: what rows have still to go must not be added to the weights that are loaded
        super()._load_best_model()

    def _settle(self):
        if self._lazy_embedding is not None:
            self._lazy_embedding.optimizer.settle()

    def _clip_grad_norm(self, model):
        if self._lazy_embedding is None:
            return super()._clip_grad_norm(model)
        return clip_gradients(list(model.parameters()), self.args.max_grad_norm)

    def _get_grad_norm(self, model, grad_norm=None):
        if self._lazy_embedding is None or grad_norm is not None:
            return super()._get_grad_norm(model, grad_norm)
        return clip_gradients(list(model.parameters()), float("inf"))

    def _get_eval_sampler(self, eval_dataset):
        return SequentialSampler(eval_dataset)

    def create_model_card(self, *args, **kwargs):
        """Nothing: when it pushes to the Hub, `Trainer` would replace the card of `reports.write_model_card`."""

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        existed = folder.exists()
        self._settle()
        try:
            with self._saving(folder):
                super()._save_checkpoint(model, trial)
        except BaseException:
            if self.args.should_save and not existed:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def save_final_model(self):
        """Writes model, tokenizer and trainer state into `output_dir`, without the pickled arguments."""
        with self._saving(Path(self.args.output_dir)):
            self.save_model(_internal_call=True)
            self.save_state()
        if self.args.should_save:
            (Path(self.args.output_dir) / "training_args.bin").unlink(missing_ok=True)

    @contextmanager
    def _saving(self, folder: Path):
        """Says in one line what could not be saved and what is left."""
        try:
            yield
        except Exception as error:  # torch, safetensors and tokenizers each have their own for a full disk
            kept = [path for path in _checkpoints(Path(self.args.output_dir)) if path != folder]
            left = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint before it"
            full = folder.exists() and shutil.disk_usage(folder).free < 2**16
            raise OSError(f"could not save {folder}: {'the disk is full' if full else error}; {left}") from error

    def push_to_hub(self, commit_message: str = "End of training", **kwargs):
        """Uploads `output_dir` as it stands: weights, tokenizer, code, card and pictures, without checkpoints."""
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo(token=self.args.hub_token)
        return upload_folder(
            repo_id=self.hub_model_id,
            folder_path=self.args.output_dir,
            commit_message=commit_message,
            token=self.args.hub_token,
            revision=self.args.hub_revision,
            ignore_patterns=[f"{PREFIX_CHECKPOINT_DIR}-*", "_*"],
        )


def choose_metric(arguments: RNNSentTrainingArguments, labels: Labels | None, given: set[str]):
    """
    Sees to it that the best checkpoint is told by a metric that there is, in the right direction.

    A regression has no accuracy, which recipes name: its mean squared error takes the place.

    Args:
        arguments ([`RNNSentTrainingArguments`]): `metric_for_best_model` and `greater_is_better` are set.
        labels ([`Labels`], *optional*): What the labels are. None for language modeling, which has a loss only.
        given (`set[str]`): Names of the arguments that the recipe or a flag gave.

    Raises:
        InputError: for a metric that the labels do not have.
    """
    metric = arguments.metric_for_best_model
    if metric is None:
        return
    metric = metric.removeprefix("eval_")
    if labels is None:
        names = ()
    elif labels.problem_type == "regression":
        names = ("mse", "pearson")
        metric = "mse" if metric == "accuracy" else metric
    else:
        names = ("accuracy", "precision", "recall", "f1", "roc_auc")
    if metric not in ("loss", *names):
        raise InputError(f"metric_for_best_model must be one of {', '.join(('loss', *names))}, got {metric!r}.")
    arguments.metric_for_best_model = metric
    if "greater_is_better" not in given:
        arguments.greater_is_better = metric not in ("loss", "mse")


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


def find_checkpoint(arguments: RNNSentTrainingArguments) -> str | None:
    """
    Sees to it that a run overwrites nothing that it was not told to, and finds where it goes on.

    Args:
        arguments ([`RNNSentTrainingArguments`]): `output_dir`, `overwrite_output_dir`, `resume_from_checkpoint` (a
            directory, or `last`).

    Returns:
        `str`, *optional*: the checkpoint to go on from.

    Raises:
        InputError: where `output_dir` holds a run or other files, or the checkpoint is not whole.
    """
    folder = Path(arguments.output_dir)
    resume = arguments.resume_from_checkpoint
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output_dir {arguments.output_dir!r} is a file.")
    if arguments.overwrite_output_dir:
        if resume is not None:
            raise InputError("give one of overwrite_output_dir, to start again, and resume_from_checkpoint, to go on.")
        return None
    if (folder / TRAIN_RESULTS).exists():
        raise InputError(
            f"output_dir {arguments.output_dir!r} holds a finished run: add --overwrite_output_dir to replace it, or "
            "name another --output_dir."
        )
    checkpoints = _checkpoints(folder)
    if resume == "last":
        if not checkpoints:
            logger.warning(f"{folder} holds no checkpoint: the run starts from the beginning.")
            return None
        resume = str(checkpoints[-1])
    if resume is not None:
        check_checkpoint(resume)
        return resume
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


def clear_output_dir(arguments: RNNSentTrainingArguments):
    """Removes what an earlier run left in `output_dir`; to be called when all else has been checked."""
    folder = Path(arguments.output_dir)
    for checkpoint in _checkpoints(folder):
        shutil.rmtree(checkpoint)
    for pattern in ("*_results.json", "*.png", "recipe.yaml", "README.md", "trainer_state.json"):
        for path in folder.glob(pattern):
            path.unlink()


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoint directories in the order of their steps."""
    found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.split("-")[-1].isdigit()]
    return sorted(found, key=lambda path: int(path.name.split("-")[-1]))


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
