"""`transformers.Trainer` for RNNSent models: batches by length, checkpoints that are whole or absent."""

import errno
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from datasets import Dataset
from torch import distributed, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput
from transformers.utils import CONFIG_NAME, logging

from .checking import NO_SHARDING, usable
from .checkpoints import (
    SETTINGS,
    UNFINISHED,
    finish_checkpoint,
    list_checkpoints,
    remove_checkpoint,
    remove_checkpoints,
)
from .errors import Diverged, InputError, Interrupted
from .launching import stop_request
from .metrics import mean_loss
from .objectives import Objectives, random_state, unlabeled_batches, watched
from .optimization import LazyAdamW, clip_gradients, lazy_embedding
from .publishing import NOTHING_TRAINED, hub_errors, publish_run
from .sampling import EpochSampler

logger = logging.get_logger(__name__)

# From this many elements on, rows of an embedding are updated when they are read. Below, a dense update takes less.
LAZY_ELEMENTS = 1 << 22

# Tokens of a batch, padding included, that are evaluated at once: a text of 20,000 words, which the whole batch would
# be padded to, took 4.5 GB otherwise.
EVAL_TOKENS = 1 << 16
# Schedules that wait for a metric to become better.
_BY_METRIC = ("reduce_lr_on_plateau", "greedy")

# Without it, unlabelled batches that are drawn from the training texts would be the labelled ones over again.
_OTHER_ORDER = 1 << 20


class _Steering(TrainerCallback):
    """Tells the sampler its epoch, ends a run that diverges, and has one that was told to stop save itself first."""

    # Processes agree on whether to stop by a word with each other, which takes time.
    STEPS_BETWEEN_WORDS = 10

    def __init__(self, trainer: "RNNSentTrainer"):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        # `accelerate` does so too, but for a run of several processes that is taken up within an epoch.
        if hasattr(self.trainer.train_sampler, "set_epoch"):
            self.trainer.train_sampler.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args, state, control, **kwargs):
        # After an epoch's last step its evaluation is still to come, which a run taken up would not make up for.
        is_last = state.epoch == int(state.epoch) or state.global_step >= state.max_steps
        if not is_last and (args.world_size == 1 or state.global_step % self.STEPS_BETWEEN_WORDS == 0):
            self._save_if_told_to_stop(control)

    def on_evaluate(self, args, state, control, **kwargs):
        self.trainer._last_checkpoint = None  # which has not this evaluation

    def on_log(self, args, state, control, logs=None, **kwargs):
        # After such a gradient no weight is a number; with a scaler the step is left out, and is no loss.
        norm = (logs or {}).get("grad_norm", 0.0)
        if not math.isfinite(norm) and self.trainer.accelerator.scaler is None:
            raise Diverged(
                f"the training has diverged: its gradient is {norm} at step {state.global_step}. A learning_rate below "
                f"{args.learning_rate:g} may keep it from that."
            )

    def on_epoch_end(self, args, state, control, **kwargs):
        self._save_if_told_to_stop(control)

    def _save_if_told_to_stop(self, control):
        is_told = self.trainer.agree_to_stop()  # first: a checkpoint that is due anyway is no answer
        control.should_save = control.should_save or is_told


class _Stopwatch(TrainerCallback, ExportableState):
    """Seconds of this process, importing included, and of those before it whose checkpoint the run goes on from."""

    earlier = 0.0

    def seconds(self) -> float:
        return round(self.earlier + time.time() - psutil.Process().create_time(), 1)

    def state(self) -> dict:
        return {"args": {}, "attributes": {"earlier": self.seconds()}}


class RNNSentTrainer(Trainer):
    """
    A `Trainer` with these differences.

    Evaluation and prediction read their data in order: `Trainer`'s length-grouped sampler shuffles them as well
    (transformers issue 48025). Training reads it by [`EpochSampler`]. A checkpoint is whole or absent, and SIGINT
    (Ctrl-C) or SIGTERM end the training after the step with one; with `save_total_limit=1` the last one stays beside
    the best until [`~RNNSentTrainer.remove_spare_checkpoints`] is called. The model card is left to `card`, and what is
    pushed to the Hub is the finished directory. On a CPU, AdamW is [`LazyAdamW`] for a large embedding, so that a step
    does not grow with the vocabulary. A classifier's step has the terms of [`Objectives`] that the arguments give a
    weight.

    Args:
        unlabeled_dataset (`Dataset`, *optional*): Texts for the terms that need no label; with a teacher, `labels` are
            its probabilities. None: the training texts.
        settings (`dict`, *optional*): The run's, kept with every checkpoint: see [`check_settings`].
    """

    _lazy_embedding: lazy_embedding | None = None
    _is_stopping = False
    _is_predicting = False
    _is_writing_checkpoint = False
    _last_checkpoint: Path | None = None
    train_sampler: Sampler | None = None

    def __init__(
        self,
        *args,
        unlabeled_dataset: Dataset | None = None,
        settings: dict[str, Any] | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # by accelerate's own configuration, too
            raise InputError(NO_SHARDING)
        self.settings = settings or {}
        self.objectives = Objectives(self.args, self.model)
        if self.objectives.are_set and self.args.n_gpu > 1:
            raise InputError(
                "adversarial_weight, virtual_adversarial_weight, entropy_weight and teachers need a process for every "
                f"GPU, got {self.args.n_gpu} GPUs in one: start it by accelerate launch --num_processes "
                f"{self.args.n_gpu} train.py ..."
            )
        self.unlabeled_dataset = self.train_dataset if unlabeled_dataset is None else unlabeled_dataset
        self._unlabeled: Iterator[dict[str, torch.Tensor]] | None = None
        self.stopwatch = _Stopwatch()
        self.add_callback(self.stopwatch)
        self.add_callback(_Steering(self))

    def call_model_init(self, trial=None):
        model = super().call_model_init(trial)
        self.objectives = Objectives(self.args, model)  # of a search, each training has a model of its own
        return model

    def training_step(self, model, inputs, num_items_in_batch=None):
        objectives = self.objectives
        if not objectives.are_set:
            return super().training_step(model, inputs, num_items_in_batch)
        inputs = self._prepare_inputs(inputs)
        random = random_state(self.args.device) if objectives.adversarial_weight > 0 else None
        with watched(objectives.embedding) as embeddings:
            loss = super().training_step(model, {**inputs}, num_items_in_batch)
        unlabeled = self._prepare_inputs(self._next_unlabeled()) if objectives.need_unlabeled else None

        def labeled_loss() -> torch.Tensor:
            random.restore()  # the same dropout: only the perturbation is to make a difference
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, {**inputs}, num_items_in_batch=num_items_in_batch)
            # A share of all items of the update already is one of its steps.
            return loss if num_items_in_batch is None else loss * self.current_gradient_accumulation_steps

        mask, scaler = inputs["attention_mask"], self.accelerator.scaler
        for term in objectives.terms(model, labeled_loss, mask, embeddings[0], unlabeled, scaler):
            term = term / self.current_gradient_accumulation_steps
            self.accelerator.backward(term)
            loss = loss + term.detach()
        return loss

    def _next_unlabeled(self) -> dict[str, torch.Tensor]:
        if self._unlabeled is None:
            # Batches, not steps: an epoch's last step may have had fewer.
            done = round((self.state.epoch or 0) * len(self.callback_handler.train_dataloader))
            processes = self.args.world_size
            self._unlabeled = unlabeled_batches(
                self.unlabeled_dataset,
                self.data_collator,
                self.args.unlabeled_batch_size or self.args.per_device_train_batch_size,
                seed=self.args.seed + _OTHER_ORDER,
                start=done * processes + self.args.process_index,
                step=processes,
            )
        return next(self._unlabeled)

    def _get_num_items_in_batch(self, batch_samples, device):
        # `Trainer` has processes count together, where one whose batch goes in more parts would wait for the others.
        if self._is_predicting:
            return None
        if self.model.config.problem_type == "regression":  # -100 is a value like others
            batch_samples = [{**batch, "labels": torch.zeros_like(batch["labels"])} for batch in batch_samples]
        return super()._get_num_items_in_batch(batch_samples, device)

    def _get_train_sampler(self, train_dataset=None):
        strategy, seed = self.args.train_sampling_strategy, self.args.data_seed
        if strategy in ("random", "group_by_length"):
            # Lengths as a list: a column of the data set is slow to look up row by row.
            lengths = self.train_dataset["length"][:] if strategy == "group_by_length" else None
            self.train_sampler = EpochSampler(
                len(self.train_dataset),
                self.args.seed if seed is None else seed,
                lengths,
                self.args.train_batch_size * self.args.world_size,
            )
        else:
            self.train_sampler = super()._get_train_sampler(train_dataset)
        return self.train_sampler

    def create_optimizer(self, model=None):
        with usable("optim", self.args.optim):
            if self.optimizer is None and self._takes_lazy_optimizer():
                _, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
                self.optimizer_cls_and_kwargs = (LazyAdamW, settings)
                optimizer = super().create_optimizer(model)
                self._lazy_embedding = lazy_embedding(self.model.get_input_embeddings(), optimizer)
            return super().create_optimizer(model)

    def create_scheduler(self, *args, **kwargs):
        settings = self.args.lr_scheduler_kwargs or {}
        if self.args.lr_scheduler_type in _BY_METRIC and self.args.greater_is_better:
            self.args.lr_scheduler_kwargs = {"mode": "max", **settings}  # torch takes every metric for a loss
        with usable("lr_scheduler_type", self.args.lr_scheduler_type):
            return super().create_scheduler(*args, **kwargs)

    def _determine_best_metric(self, metrics, trial):
        self.check_metric(metrics)
        return super()._determine_best_metric(metrics, trial)

    def check_metric(self, metrics: dict[str, float]):
        """Raises `InputError` where what models are compared by is not among the validation split's metrics."""
        name, times = self.args.metric_for_best_model, ("epoch", "runtime", "per_second")
        held = sorted(key.removeprefix("eval_") for key in metrics if not key.endswith(times))
        if name is not None and name.removeprefix("eval_") not in held:
            raise InputError(f"metric_for_best_model {name!r} is not what the validation split gives: {held}.")

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
            and LazyAdamW.can_take((self.args.adam_beta1, self.args.adam_beta2))
        )

    def train(self, *args, **kwargs):
        """
        As `Trainer.train`.

        Raises:
            Interrupted: after SIGINT or SIGTERM, with the last checkpoint's path.
        """
        self._is_stopping, self._last_checkpoint = False, None
        try:
            with stop_request.heeded(is_patient=True):
                return super().train(*args, **kwargs)
        finally:
            if self._lazy_embedding is not None:
                self._lazy_embedding.remove()

    def agree_to_stop(self) -> bool:
        """Whether this process or another was told to stop; to be asked by all at the same step."""
        if self.args.world_size == 1:  # with nobody to ask a GPU need not be waited for
            self._is_stopping = stop_request.signal is not None
        elif not self._is_stopping:
            asked = torch.tensor(float(stop_request.signal is not None), device=self.args.device)
            self._is_stopping = bool(self.accelerator.reduce(asked, "sum") > 0)
        return self._is_stopping

    def _load_best_model(self):
        """By the main process, for all: another machine need not have its directory."""
        self._settle()  # first: what rows have still to go must not be added to the weights that are loaded
        if self.is_world_process_zero():
            super()._load_best_model()
        if self.args.world_size > 1:
            for values in self.model.state_dict().values():
                distributed.broadcast(values, src=0)

    def _settle(self):
        if self._lazy_embedding is not None:
            self._lazy_embedding.optimizer.settle()

    def _clip_grad_norm(self, model):
        if self._lazy_embedding is None:
            return super()._clip_grad_norm(model)
        return clip_gradients(list(model.parameters()), self.args.max_grad_norm)

    def _get_grad_norm(self, model, grad_norm=None):
        step = self.state.global_step + 1
        if grad_norm is None and self.args.logging_strategy == "steps" and step > 1 and step % self.state.logging_steps:
            return None  # without clipping it is for the log alone, and 4 % of a small model's step
        if self._lazy_embedding is None or grad_norm is not None:
            return super()._get_grad_norm(model, grad_norm)
        return clip_gradients(list(model.parameters()), float("inf"))

    def _get_dataloader(self, *args, is_training=False, **kwargs):
        """As `Trainer._get_dataloader`, but `dataloader_drop_last` is for training: every text is evaluated."""
        drops = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drops and is_training
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drops

    def _get_eval_sampler(self, eval_dataset):
        return SequentialSampler(eval_dataset)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As `Trainer.prediction_step`, in parts whose texts are padded to their own longest where a batch is large."""
        predict = partial(super().prediction_step, model)
        self._is_predicting = True
        try:
            return self._predict_in_parts(predict, inputs, prediction_loss_only, ignore_keys)
        finally:
            self._is_predicting = False

    @staticmethod
    def _predict_in_parts(predict: Callable, inputs, *settings):
        mask = inputs.get("attention_mask")
        if mask is None or mask.numel() <= EVAL_TOKENS:
            return predict(inputs, *settings)
        lengths = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1).tolist()
        answers, sizes, start = [], [], 0
        while start < len(lengths):
            stop, longest = start + 1, max(1, lengths[start])
            while stop < len(lengths) and (stop + 1 - start) * max(longest, lengths[stop]) <= EVAL_TOKENS:
                longest, stop = max(longest, lengths[stop]), stop + 1
            part = {name: value[start:stop] for name, value in inputs.items()}
            part |= {name: part[name][:, :longest] for name in ("input_ids", "attention_mask")}
            answers.append(predict(part, *settings))
            sizes.append(stop - start)
            start = stop
        losses, logits, labels = zip(*answers)
        loss = None if losses[0] is None else sum(one * size for one, size in zip(losses, sizes)) / len(lengths)
        return loss, *(None if part[0] is None else torch.cat(part) for part in (logits, labels))

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """
        As `Trainer.evaluation_loop`, with the mean loss over all texts (tokens, of a language model).

        `Trainer` takes the mean over batches, in which a smaller last one counts like the others, and with several
        processes a text that fills one up counts twice.
        """
        if getattr(self.data_collator, "labels_are_ids", False):  # anybody's collator will do for a classifier
            return self._evaluate_language_model(dataloader, metric_key_prefix)
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if output.predictions is not None and output.label_ids is not None:
            loss = mean_loss(output.predictions, output.label_ids, self.model.config.problem_type)
            output.metrics[f"{metric_key_prefix}_loss"] = loss
        return output

    @torch.no_grad()
    def _evaluate_language_model(self, dataloader, metric_key_prefix: str) -> EvalLoopOutput:
        """Mean loss over tokens; each process reads its share of the texts once."""
        model, dataset = self.model.eval(), dataloader.dataset
        rows = list(range(self.args.process_index, len(dataset), self.args.world_size))
        sums = torch.zeros(2, dtype=torch.float64)
        for start in range(0, len(rows), self.args.eval_batch_size):
            batch = dataset[rows[start : start + self.args.eval_batch_size]]["input_ids"]
            inputs = self._prepare_inputs(self.data_collator([{"input_ids": ids} for ids in batch]))
            with self.compute_loss_context_manager():
                # With this count of tokens the loss is the sum over them; of the logits it needs a part at a time.
                loss = model(**inputs, num_items_in_batch=1, logits_to_keep=1).loss
            tokens = sum(max(0, len(ids) - 1) for ids in batch)
            sums += torch.tensor([float(loss), tokens], dtype=torch.float64)
        loss, tokens = self.accelerator.reduce(sums.to(self.args.device))  # where the processes' connection reduces
        loss = float(loss) / max(1, float(tokens))
        if not loss < math.log(sys.float_info.max):  # beyond it there is no perplexity
            raise Diverged(f"the training has diverged: the loss is {loss:g} a token. Lower its learning_rate.")
        metrics = {f"{metric_key_prefix}_loss": loss}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataset))

    def log(self, logs, *args, **kwargs):
        unit = getattr(getattr(self.model, "classifier", None), "scale", 1.0) ** 2
        for name in logs.keys() & {"loss", "train_loss"}:  # of values it is in another one than the validation's
            logs[name] *= unit
        super().log(logs, *args, **kwargs)

    def create_model_card(self, *args, **kwargs):
        """Nothing: when it pushes to the Hub, `Trainer` would replace the card of `card.write_model_card`."""

    def _get_output_dir(self, trial):
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / UNFINISHED) if self._is_writing_checkpoint else folder

    def _save_checkpoint(self, model, trial):
        run_folder = Path(self._get_output_dir(trial))
        place = run_folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        unfinished = run_folder / UNFINISHED / place.name
        self._settle()
        try:
            with self._saving(place):
                if self.args.should_save:
                    shutil.rmtree(unfinished, ignore_errors=True)
                self.accelerator.wait_for_everyone()
                self._is_writing_checkpoint = True
                super()._save_checkpoint(model, trial)
                self._is_writing_checkpoint = False
                self.accelerator.wait_for_everyone()
                best = run_folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
                if best == place or best.exists():
                    self.state.best_model_checkpoint = str(best)
                if self.args.should_save:
                    self.state.save_to_json(str(unfinished / TRAINER_STATE_NAME))  # with the best one's final name
                    (unfinished / SETTINGS).write_text(json.dumps(self.settings, indent=1) + "\n", encoding="utf-8")
                    finish_checkpoint(unfinished, place)
                    remove_checkpoints(place, self.args.save_total_limit, self.state.best_model_checkpoint)
        except BaseException:
            self._is_writing_checkpoint = False
            if self.args.should_save:
                shutil.rmtree(unfinished, ignore_errors=True)
            raise
        self.accelerator.wait_for_everyone()
        self._last_checkpoint = place
        if self._is_stopping:
            self._stop()

    def _stop(self):
        how = "the same command with --resume_from_checkpoint last goes on from it"
        if self.args.save_only_model:
            how = "with --save_only_model it is no checkpoint to go on from"
        raise Interrupted(f"interrupted: {self._last_checkpoint} is saved, and {how}", stop_request.signal)

    def _init_training_state(self, max_steps, steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial):
        progress = super()._init_training_state(
            max_steps, steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None:
            return progress
        self._last_checkpoint = Path(resume_from_checkpoint)
        best = self._last_checkpoint.parent / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if best.is_dir():  # the directory may have another name now, or another one above it
            self.state.best_model_checkpoint = str(best)
        if held := self.state.stateful_callbacks.get(_Stopwatch.__name__):
            self.stopwatch.earlier = held["attributes"]["earlier"]
        # What this run was given beside the one before it: its own intervals, callbacks that the other had not.
        self.state.compute_steps(self.args, max_steps)
        for callback in (*self.callback_handler.callbacks, self.control):
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks.setdefault(type(callback).__name__, callback.state())
        for callback in self.callback_handler.callbacks:
            held = self.state.stateful_callbacks.get("EarlyStoppingCallback")
            if not isinstance(callback, EarlyStoppingCallback) or not held:
                continue
            # `Trainer` would begin to count anew.
            callback.early_stopping_patience_counter = held["attributes"]["early_stopping_patience_counter"]
            if callback.early_stopping_patience_counter >= callback.early_stopping_patience:
                return num_train_epochs, 0  # it had been stopped
        # At its end within an epoch `Trainer` would take one step more before it asks.
        return (num_train_epochs, 0) if self.state.global_step >= max_steps else progress

    def _finalize_training(self, trial, *args):
        # A signal during the last evaluation or save: nobody has asked since.
        is_saved = getattr(self._last_checkpoint, "name", "") == f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if is_saved and self.agree_to_stop():
            self._stop()
        # `Trainer` would remove all but the best one: a run stopped while it is tested is to go on from the last.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(trial, *args)
        finally:
            self.args.save_total_limit = limit

    def remove_spare_checkpoints(self):
        """What `Trainer` does at a training's end, where one checkpoint is kept: all but the best one go."""
        if self.args.should_save and self.args.save_total_limit == 1 and self.state.best_model_checkpoint is not None:
            for checkpoint in list_checkpoints(Path(self.args.output_dir)):
                if checkpoint.name != Path(self.state.best_model_checkpoint).name:
                    remove_checkpoint(checkpoint)

    def save_final_model(self):
        """
        Writes model, tokenizer and trainer state into `output_dir`, without the pickled arguments: beside it first, the
        configuration last, without which a directory is no model's, so that none stands with another's weights.
        """
        folder = Path(self.args.output_dir)
        unfinished = folder / UNFINISHED / "model"
        with self._saving(folder):
            self.save_model(str(unfinished), _internal_call=True)
            self.save_state()
            if self.args.should_save:
                (unfinished / "training_args.bin").unlink(missing_ok=True)
                (folder / CONFIG_NAME).unlink(missing_ok=True)
                for path in sorted(unfinished.iterdir(), key=lambda path: path.name == CONFIG_NAME):
                    os.replace(path, folder / path.name)

    @contextmanager
    def _saving(self, folder: Path):
        """Says in one line what could not be saved and what is left."""
        try:
            yield
        except Exception as error:  # torch, safetensors and tokenizers each have their own for a full disk
            kept = list_checkpoints(Path(self.args.output_dir))
            left = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint before it"
            full = os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(self.args.output_dir).free < 2**16
            raise OSError(f"could not save {folder}: {'the disk is full' if full else error}; {left}") from error

    def init_hf_repo(self, *args, **kwargs):
        with hub_errors(self.args.hub_model_id or Path(self.args.output_dir).resolve().name, NOTHING_TRAINED):
            super().init_hf_repo(*args, **kwargs)

    def push_to_hub(self, commit_message: str = "End of training", **kwargs):
        """Uploads `output_dir` as it stands: see [`publish`]."""
        if not self.is_world_process_zero():
            return None
        return publish_run(self.args, commit_message)
