"""`rnnsent tune`: better settings of a recipe, by `Trainer.hyperparameter_search` with Optuna, within a time budget."""

import json
import math
import shutil
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any

import yaml
from transformers import PrinterCallback, set_seed
from transformers.utils import logging

from .arguments import FOUND_OUT, RUN_ONLY, Run, names_of, parse_run
from .checking import check_settings_of, check_smoothing, check_step, choose_metric
from .checkpoints import DATA, RECIPE, locked, refuse_strange_files
from .configuration_rnnsent import RNNSentConfig
from .data import digest_of, load_labeled_texts, tokenize
from .errors import Diverged, InputError, Interrupted
from .launching import stop_request, use_threads
from .metrics import metrics_for
from .modeling_rnnsent import RNNSentForSequenceClassification
from .padding import PaddingCollator
from .showing import figures
from .tokenization import build_tokenizer
from .training import RNNSentTrainer

STUDY = "rnnsent"


TRAINING_SPACE = {
    "learning_rate": lambda trial, name: trial.suggest_float(name, 3e-4, 1e-2, log=True),
    "per_device_train_batch_size": lambda trial, name: trial.suggest_categorical(name, [16, 32, 64]),
    "num_train_epochs": lambda trial, name: trial.suggest_int(name, 2, 6),
}
MODEL_SPACE = {
    "hidden_size": lambda trial, name: trial.suggest_categorical(name, [32, 64, 128]),
    "pooling": lambda trial, name: trial.suggest_categorical(name, ["max", "mean", "max_mean", "attention"]),
    "word_dropout": lambda trial, name: trial.suggest_float(name, 0.0, 0.5, step=0.1),
    "embedding_dropout": lambda trial, name: trial.suggest_float(name, 0.0, 0.5, step=0.1),
    "classifier_dropout": lambda trial, name: trial.suggest_float(name, 0.0, 0.5, step=0.1),
}


def suggest(trial, space: dict, fixed: set[str]) -> dict[str, Any]:
    """Settings of one trial, but for those that are `fixed`."""
    return {name: draw(trial, name) for name, draw in space.items() if name not in fixed}


def tune_recipe(
    recipe: str, output: str, minutes: float, trials: int | None = None, flags: list[str] | None = None
) -> dict[str, Any]:
    """
    Searches, and writes the best settings as `output/recipe.yaml`, a recipe for `train.py`.

    Each training is with other settings, chosen by what the ones before it gave on the validation split (TPE), and is
    stopped early where it falls behind the others. What was tried is kept in `output/study.db`: started again, the
    search goes on. A recipe's n-grams and word vectors are left out of the search, which compares recurrent layers from
    a random start, and stand in the recipe written; the test split takes no part. The temperature and the n-grams'
    weight that a run's recipe names are of its model, and left to be found anew.

    Args:
        recipe (`str`): Recipe to start from.
        output (`str`): Directory to write.
        minutes (`float`): Time budget; a training that has begun is brought to its end.
        trials (`int`, *optional*): Most trainings in all, those of earlier searches counted. None: no limit.
        flags (`list[str]`, *optional*): Flags of `train.py`, which beat the recipe and are not searched for.

    Returns:
        `dict[str, Any]`: the number of `trainings` in all, the `metric` and its best `value`, whether the recipe has
        `ngrams` that this is without, the best `settings` by name, and the `recipe` written.

    Raises:
        InputError: where the recipe cannot be used, `output` holds a search of other settings, or Optuna is missing.
        Interrupted: after SIGINT or SIGTERM; what was tried is kept.
    """
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        raise InputError("rnnsent tune needs Optuna: pip install optuna") from None
    if minutes <= 0 or (trials is not None and trials < 1):
        raise InputError(f"--minutes and --trials must be positive, got {minutes} and {trials}.")
    folder, flags = Path(output), flags or []
    run = parse_run([recipe, *flags, f"--output_dir={folder / 'trials'}"])
    run.training.push_to_hub = False
    for name in FOUND_OUT - {"ngram_buckets", "ngram_presence"} - names_of(flags):
        setattr(run.model, name, None)
    if run.data.task != "text-classification" or run.model.model_name_or_path is not None:
        raise InputError("rnnsent tune is for a classifier that starts at random: no language model, no trained one.")
    if run.tokenizer_name is not None or run.training.needs_unlabeled_texts or run.training.teacher_name_or_path:
        raise InputError(
            "rnnsent tune makes the tokenizer and learns from labels: no tokenizer_name, no teacher, and no "
            "term for texts without labels."
        )
    check_settings_of(run)
    if not (folder / "study.db").is_file():
        refuse_strange_files(folder, f"--output {output!r} holds other files than a search's", "--output")
    use_threads(run.training)
    settings = run.settings(None)  # before the search changes what it needs to
    logging.set_verbosity_error()
    # An interrupted trial is no fault of the program's, whose traceback somebody would want.
    getLogger("optuna.study._optimize").addFilter(lambda record: not record.exc_info)
    with locked(output):
        try:
            with stop_request.heeded(is_patient=False):
                study = search(run, settings, folder, names_of(flags), minutes, trials)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted: what was tried is kept in {folder / 'study.db'}, and the same command goes on",
                stop_request.signal,
            ) from None
        finally:
            shutil.rmtree(folder / "trials", ignore_errors=True)
        return write_best(study, run, recipe, flags, folder)


def search(run: Run, settings: dict[str, Any], folder: Path, fixed: set[str], minutes: float, trials: int | None):
    """The study kept in `folder` after `minutes` or `trials`; settings that are `fixed` are not searched for."""
    import optuna

    asked = {**settings, "flags": sorted(fixed)}
    if run.model.input_encoding == "one_hot":
        fixed = fixed | {"word_dropout", "embedding_dropout"}
    trainer, asked[DATA] = make_trainer(run, fixed)
    metric = run.training.metric_for_best_model
    direction = "maximize" if run.training.greater_is_better else "minimize"
    kept = {"study_name": STUDY, "storage": f"sqlite:///{folder / 'study.db'}", "load_if_exists": True}
    study = optuna.create_study(direction=direction, **kept)
    check_same_search(study, {"metric_for_best_model": metric, **asked}, folder)
    tried = len(whole(study))

    def objective(metrics: dict[str, float]) -> float:
        trainer.check_metric(metrics)
        return metrics[f"eval_{metric}"]

    if trials is None or tried < trials:
        # A signal waits for a training's next step or start: within the work of the file of trials it would break that.
        with _none_finished(study), stop_request.heeded(is_patient=True):
            trainer.hyperparameter_search(
                hp_space=lambda trial: suggest(trial, TRAINING_SPACE, fixed),
                compute_objective=objective,
                n_trials=None if trials is None else trials - tried,
                direction=direction,
                backend="optuna",
                timeout=60 * minutes,
                sampler=optuna.samplers.TPESampler(seed=run.training.seed + len(study.trials)),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
                **kept,
            )
    return optuna.load_study(study_name=STUDY, storage=kept["storage"])


@contextmanager
def _none_finished(study):
    """Passes over the error of `transformers` where all trainings were given up, and there is no best one to return."""
    try:
        yield
    except ValueError:
        # An error within a training leaves that one failed.
        if _finished(study) or [trial.state.name for trial in study.trials[-1:]] != ["PRUNED"]:
            raise


def _finished(study) -> list:
    """The trainings that came to their end."""
    return [trial for trial in study.trials if trial.state.name == "COMPLETE"]


def whole(study) -> list:
    """The trainings of a search that were not interrupted."""
    return [trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")]


def check_same_search(study, settings: dict[str, Any], folder: Path):
    """Keeps the settings with a new search; raises `InputError` for a search that was begun with others."""
    settings = json.loads(json.dumps(settings))
    held = study.user_attrs.get("settings")
    if held is None and not study.trials:
        study.set_user_attr("settings", settings)
    elif held != settings:
        held = held or {}
        name = next(name for name in {**held, **settings} if held.get(name) != settings.get(name))
        if name == DATA:
            raise InputError(
                f"{folder} holds a search on other data: texts or labels have changed since. Go on with those that it "
                "began with, or name another --output."
            )
        raise InputError(
            f"{folder} holds a search with {name}={held.get(name)}, this one has {name}={settings.get(name)}: go on "
            "with what it began with, or name another --output."
        )


class _TrialTrainer(RNNSentTrainer):
    """
    A trainer whose trial is given up where it diverges, for the search to go on, unless that was told to stop. With
    `keeps_best`, as the recipe does, a trial's result is the best of its evaluations, else the last.
    """

    keeps_best = False
    _best: float | None = None

    def train(self, *args, **kwargs):
        from optuna import TrialPruned

        if stop_request.signal is not None:
            raise KeyboardInterrupt
        try:
            return super().train(*args, **kwargs)
        except Diverged as error:
            raise TrialPruned(str(error)) from error

    def _hp_search_setup(self, trial):
        super()._hp_search_setup(trial)
        self._best = None
        try:
            check_step(self.args, len(self.train_dataset))
        except InputError as error:  # of this trial's batches
            from optuna import TrialPruned

            raise TrialPruned(str(error)) from error

    def _report_to_hp_search(self, trial, step, metrics):
        # A step of one training has read as much as several of another: they are compared epoch by epoch.
        super()._report_to_hp_search(trial, math.ceil(self.state.epoch), metrics)
        if self.keeps_best:
            better = max if self.args.greater_is_better else min
            self._best = self.objective if self._best is None else better(self._best, self.objective)
            self.objective = self._best


def make_trainer(run: Run, fixed: set[str]) -> tuple[RNNSentTrainer, str]:
    """
    A trainer that makes a new model for every trial, with all but the `fixed` settings searched for, and what tells its
    data from others.
    """
    arguments = run.training
    texts = load_labeled_texts(run.data, run.model.problem_type)
    tokenizer = build_tokenizer(texts.texts(), **run.data.tokenizer_options)
    texts.splits.pop("test", None)  # nothing is chosen by it
    splits = tokenize(texts.splits, tokenizer, run.data.max_length, run.data.preprocessing_num_workers)
    arguments.metric_for_best_model = arguments.metric_for_best_model or "loss"
    choose_metric(arguments, texts.labels)
    check_smoothing(arguments, texts.labels)
    keeps_best = arguments.load_best_model_at_end
    arguments.save_strategy, arguments.load_best_model_at_end, arguments.disable_tqdm = "no", False, True
    arguments.eval_strategy = "epoch"
    given = {name: value for name, value in vars(run.model).items() if value is not None}
    given = {name: value for name, value in given.items() if not name.startswith(("ngram_", "word_vectors"))}

    def make_model(trial=None):
        set_seed(arguments.seed)
        chosen = {} if trial is None else suggest(trial, MODEL_SPACE, fixed)
        own = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **texts.labels.config}
        model = RNNSentForSequenceClassification(RNNSentConfig(**{**given, **chosen, **own}))
        set_seed(arguments.seed)  # as `Trainer` does when it is given a model: the recipe written is to give the same
        return model

    trainer = _TrialTrainer(
        model_init=make_model,
        args=arguments,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        data_collator=PaddingCollator(tokenizer.pad_token_id),
        compute_metrics=metrics_for(texts.labels),
    )
    trainer.keeps_best = keeps_best
    trainer.remove_callback(PrinterCallback)  # standard output is for the result
    return trainer, digest_of(splits, tokenizer, texts.labels)


def write_best(study, run: Run, recipe: str, flags: list[str], folder: Path) -> dict[str, Any]:
    """Writes the recipe with the flags and the best settings; returns what there is to say."""
    if not _finished(study):
        raise InputError(
            "no training came to its end: give more --minutes or, where they diverge, a lower learning_rate."
        )
    best, metric = study.best_trial, run.training.metric_for_best_model
    settings = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
    given = run.settings(None)  # the recipe's with the flags; what only the search had is not in it
    own = {"save_strategy", "load_best_model_at_end", "eval_strategy", *RUN_ONLY}
    # By a flag, what the recipe says of its data may be gone, and other settings have other values.
    settings = {
        name: value if name in own else given[name] for name, value in settings.items() if name in {*given, *own}
    }
    flagged = names_of(flags) - own
    settings |= {name: given[name] for name in flagged if name in given}
    settings |= best.params
    tried = f"the best of {len(whole(study))} settings tried: {metric} {figures(best.value)} on validation"
    head = f"# {Path(recipe).name} with {tried}.\n"
    (folder / RECIPE).write_text(head + yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return {
        "trainings": len(whole(study)),
        "metric": metric,
        "value": best.value,
        "ngrams": bool(run.model.ngram_order),
        "settings": best.params,
        "recipe": str(folder / RECIPE),
    }
