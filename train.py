"""
Trains a recurrent text classifier from a recipe:

    accelerate launch train.py configuration/RECIPE.yaml [--field value ...]

`python train.py` does the same in one process. `--help` lists every field; a flag beats the recipe.
"""

import math
import sys
from contextlib import ExitStack
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
import yaml
from transformers import AutoTokenizer, EarlyStoppingCallback, TrainerCallback, pipeline, set_seed

from modeling_rnnsent.arguments import RNNSentTrainingArguments, Run, parse_run
from modeling_rnnsent.card import REPORTS, FinishedRun, find_mistakes, repeating, show_mistakes, write_model_card
from modeling_rnnsent.checking import check_settings_of, check_smoothing, check_step, choose_metric
from modeling_rnnsent.checkpoints import (
    DATA,
    PROCESSES,
    RECIPE,
    check_data,
    clear_output_dir,
    find_checkpoint,
    is_finished,
    is_in_passing,
    list_checkpoints,
    locked,
)
from modeling_rnnsent.data import LabeledTexts, digest_of, load_labeled_texts, load_texts, tokenize
from modeling_rnnsent.documents import DOCUMENTS
from modeling_rnnsent.errors import InputError, Interrupted, loading, one_line_errors
from modeling_rnnsent.explaining import Explainer
from modeling_rnnsent.labels import Labels
from modeling_rnnsent.launching import (
    from_main_process,
    main_process_first,
    process_group,
    stop_request,
    use_threads,
    warn_of_missing_processes,
)
from modeling_rnnsent.metrics import fit_temperature, metrics_for
from modeling_rnnsent.ngrams import choose_weight
from modeling_rnnsent.padding import PaddingCollator
from modeling_rnnsent.pictures import Predictions, write_pictures
from modeling_rnnsent.publishing import publish_run
from modeling_rnnsent.scoring import probabilities
from modeling_rnnsent.showing import prepare_output
from modeling_rnnsent.starting import keep_source, load_model
from modeling_rnnsent.teaching import ask_teachers
from modeling_rnnsent.tokenization import build_tokenizer
from modeling_rnnsent.training import RNNSentTrainer
from modeling_rnnsent.vectors import check_vectors, import_gensim

EXAMPLES, EXAMPLE_CHARACTERS = 3, 100


def main():
    with process_group():
        start(parse_run())


def start(run: Run):
    arguments = run.training
    choose_output(run)
    use_threads(arguments)
    warn_of_missing_processes(arguments)
    if is_finished(arguments) and is_left_alone(run):
        return
    was_finished = is_finished(arguments)  # which is to be overwritten
    try:
        with stop_request.heeded(is_patient=False), ExitStack() as stack:
            # Of all processes where one cannot have it.
            from_main_process(lambda: stack.enter_context(locked(arguments.output_dir)) and None)
            train(run)
    except Interrupted:
        raise
    except KeyboardInterrupt:
        checkpoints = [] if arguments.save_only_model else list_checkpoints(Path(arguments.output_dir))
        left = "there is no checkpoint yet"
        if is_finished(arguments) and not was_finished:
            left = f"{arguments.output_dir} holds the run, finished"
        elif checkpoints:
            left = f"--resume_from_checkpoint last goes on from {checkpoints[-1]}"
        raise Interrupted(f"interrupted: {left}", stop_request.signal) from None


def choose_output(run: Run):
    """Leaves progress bars to the main process's terminal; a log gets whole lines, as they come."""
    prepare_output(line_buffering=True)
    if not run.training.should_log or not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers.logging.disable_progress_bar()
        if "disable_tqdm" not in run.given:
            run.training.disable_tqdm = True


def is_left_alone(run: Run) -> bool:
    """Whether nothing is to be trained since `output_dir` holds the run, finished; uploads it where that is wanted."""
    arguments = run.training
    if arguments.overwrite_output_dir and (arguments.resume_from_checkpoint != "last" or not is_same(run)):
        return False
    if arguments.push_to_hub and is_same(run):  # an upload that failed
        if arguments.should_log:
            print(f"{arguments.output_dir} holds this run, finished: it is uploaded.", flush=True)
            publish_run(arguments)
        return True
    if arguments.resume_from_checkpoint == "last" and is_same(run):
        if arguments.should_log:
            print(f"{arguments.output_dir} holds a finished run: there is nothing to go on with.")
        return True
    return False


def is_same(run: Run) -> bool:
    """Whether the recipe that `output_dir` holds says all that this run was given."""
    recipe = Path(run.training.output_dir, RECIPE)
    if not recipe.is_file():
        return False
    try:
        held = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return False
    if not isinstance(held, dict):
        return False
    given = {name: value for name, value in run.settings(None).items() if name in run.given and not is_in_passing(name)}
    metric = given.pop("metric_for_best_model", None)
    # As it is kept; for a regression another one stands for the accuracy.
    if metric is not None and (held.get("metric_for_best_model"), metric) != ("mse", "accuracy"):
        given["metric_for_best_model"] = metric.removeprefix("eval_")
    return all(held.get(name) == value for name, value in given.items())


def train(run: Run):
    arguments = run.training
    asked = {**run.settings(None), PROCESSES: count_processes(arguments)}
    checkpoint = find_checkpoint(arguments, asked)
    check_settings_of(run)
    if checkpoint is None:
        check_start(run)
    with main_process_first():
        if run.data.task == "language-modeling":
            texts = load_texts(run.data)
        else:
            texts = load_labeled_texts(run.data, run.model.problem_type)
    check_smoothing(arguments, texts.labels)
    tokenizer = load_tokenizer(run, texts)
    parts = choose_texts(run, texts, tokenizer)
    with main_process_first():
        splits = tokenize(
            parts,
            tokenizer,
            run.data.max_length,
            run.data.preprocessing_num_workers,
            in_pieces=texts.labels is None,
        )
    check_step(arguments, len(splits["train"]))
    digest = digest_of(splits, tokenizer, texts.labels)
    if checkpoint is not None:
        check_data(checkpoint, digest)
    set_seed(arguments.seed)
    model = load_model(run, texts, parts, tokenizer, checkpoint)
    choose_metric(arguments, texts.labels)
    settings = run.settings(model.config)
    if texts.labels is not None:
        # Checkpoints are compared by what they have learned: beside good n-grams the least trained layers look best.
        model.config.temperature = 1.0
        if model.config.ngram_order:
            model.config.ngram_weight = 0.0
    if arguments.metric_for_best_model is not None:
        settings["metric_for_best_model"] = arguments.metric_for_best_model
    if arguments.should_log:
        print(describe(model, splits, texts.labels), flush=True)
        if texts.labels is not None and model.config.ngram_order:
            print("until the end, metrics are of the recurrent layers alone; the n-grams join them then", flush=True)

    trainer = RNNSentTrainer(
        model=model,
        args=arguments,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        unlabeled_dataset=splits.pop("unlabeled", None),
        settings={**asked, DATA: digest},
        processing_class=tokenizer,
        data_collator=PaddingCollator(tokenizer.pad_token_id, labels_are_ids=texts.labels is None),
        compute_metrics=None if texts.labels is None else metrics_for(texts.labels),
        callbacks=[ClearOutputDir()] if checkpoint is None else [],
    )
    if arguments.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(arguments.early_stopping_patience))
    result = trainer.train(resume_from_checkpoint=checkpoint)
    if texts.labels is not None:
        settings |= calibrate(trainer, run, texts.labels.problem_type)
    report(trainer, texts, splits, settings, result.metrics)


def count_processes(arguments: RNNSentTrainingArguments) -> int:
    """How many take a batch each in a step: processes, or the GPUs of the one."""
    return arguments.world_size * max(1, arguments.n_gpu)


def load_tokenizer(run: Run, texts: LabeledTexts):
    name = run.tokenizer_name
    if name is None:
        return from_main_process(lambda: build_tokenizer(texts.texts(), **run.data.tokenizer_options))
    keep_source(name, run)
    with loading("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer {name!r} is {type(tokenizer).__name__}, written in Python: give a fast one.")
    return tokenizer


def choose_texts(run: Run, texts: LabeledTexts, tokenizer) -> datasets.DatasetDict:
    """The splits, with `unlabeled` where the training uses texts without labels."""
    parts, training = dict(texts.splits), run.training
    if texts.labels is not None and texts.unlabeled is not None and training.needs_unlabeled_texts:
        parts["unlabeled"] = texts.unlabeled
    if training.teacher_name_or_path and texts.labels is not None:
        if DOCUMENTS in training.teacher_name_or_path and "unlabeled" not in parts:
            raise InputError(f"the teacher {DOCUMENTS} needs texts without labels: give unlabeled_file.")
        unlabeled = parts.get("unlabeled", parts["train"])
        parts["unlabeled"] = ask_teachers(
            training.teacher_name_or_path,
            texts.splits,
            unlabeled,
            texts.labels,
            tokenizer,
            training.seed,
            training.device,
            training.mixed_precision == "bf16",
        )
    return datasets.DatasetDict(parts)


class ClearOutputDir(TrainerCallback):
    """Removes the run that is to be overwritten when nothing keeps the new one from its first step."""

    def on_train_begin(self, args, state, control, **kwargs):
        if args.overwrite_output_dir and args.should_save:
            clear_output_dir(args, REPORTS)


def check_start(run: Run):
    """Sees to it, before the data is read, that vectors can be had and are wanted."""
    if DOCUMENTS in (run.training.teacher_name_or_path or []):
        import_gensim(f"the teacher {DOCUMENTS}")
    vectors, started = run.model.word_vectors, run.model.model_name_or_path
    if vectors is None:
        return
    if started is not None:
        raise InputError(
            f"word_vectors {vectors!r} is for a new model, and model_name_or_path {started!r} has an embedding: give "
            "one of them."
        )
    check_vectors(vectors)


def describe(model, splits, labels: Labels | None) -> str:
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in splits.items())
    words = f"{model.config.vocab_size:,} words; {model.num_parameters():,} parameters"
    if labels is None:
        return f"{sizes} pieces of text; {words}"
    if not labels.names:
        values = np.array(splits["train"]["labels"][:])
        return f"{sizes} texts; values from {values.min():g} to {values.max():g} (regression); {words}"
    shown = ", ".join([*(name[:30] for name in labels.names[:6]), *(["..."] if len(labels.names) > 6 else [])])
    kind = "labels, any number a text" if labels.problem_type == "multi_label_classification" else "classes"
    return f"{sizes} texts; {len(labels.names):,} {kind} ({shown}); {words}"


def calibrate(trainer: RNNSentTrainer, run: Run, problem_type: str) -> dict[str, float]:
    """
    Chooses on the validation texts what nobody chose: the n-grams' weight in the answer, then the temperature.

    Returns:
        `dict[str, float]`: what the model's config has now.
    """
    config, chosen = trainer.model.config, {}
    output = trainer.predict(trainer.eval_dataset)
    logits, labels = output.predictions, output.label_ids
    if config.ngram_order:
        config.ngram_weight = 1.0
        ngram_logits, weight = trainer.predict(trainer.eval_dataset).predictions, run.model.ngram_weight
        weight = choose_weight(logits, ngram_logits, labels, problem_type) if weight is None else weight
        logits = logits + weight * (ngram_logits - logits)
        chosen["ngram_weight"] = config.ngram_weight = weight
        if trainer.is_world_process_zero():
            lack = (
                ": the recurrent layers, which have the rest, have learned nothing beyond them" if weight == 1 else ""
            )
            print(f"weight of the n-grams in the answer: {weight:g}{lack}", flush=True)
    temperature = run.model.temperature
    chosen["temperature"] = fit_temperature(logits, labels, problem_type) if temperature is None else temperature
    config.temperature = chosen["temperature"]
    return chosen


def report(trainer: RNNSentTrainer, texts: LabeledTexts, splits, settings: dict, train_metrics: dict):
    """Saves the model and everything that tells how good it is, then shows three classified texts."""
    folder, processes = Path(trainer.args.output_dir), count_processes(trainer.args)
    results, predictions = {}, None
    for split, prefix in (("validation", "eval"), ("test", "test")):
        if split in splits:
            if texts.labels is None:
                metrics = trainer.evaluate(splits[split], metric_key_prefix=prefix)
                metrics[f"{prefix}_perplexity"] = math.exp(metrics[f"{prefix}_loss"])
            else:
                output = trainer.predict(splits[split], metric_key_prefix=prefix)
                metrics = output.metrics
                predictions = Predictions(
                    probabilities(output.predictions, texts.labels.problem_type),
                    np.asarray(output.label_ids),
                    np.array(splits[split]["length"][:]),
                )
            trainer.log_metrics(prefix, metrics)
            trainer.save_metrics(prefix, {**metrics, f"{prefix}_samples": len(splits[split])}, combined=False)
            results[split] = {key.removeprefix(f"{prefix}_"): value for key, value in metrics.items()}
    if trainer.is_world_process_zero():
        recipe = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        written_by = f"# transformers {transformers.__version__}, torch {torch.__version__}: {repeating(processes)}\n"
        # Before the model: wherever a run ends, its directory is known as one.
        (folder / RECIPE).write_text(written_by + recipe, encoding="utf-8")
    trainer.save_final_model()
    if trainer.is_world_process_zero():
        pictures = write_pictures(folder, trainer.state.log_history, predictions, texts.labels)
        mistakes = []
        if texts.labels is not None and texts.labels.problem_type == "single_label_classification":
            mistakes = find_and_show_mistakes(trainer, texts, splits, predictions)
        write_model_card(
            FinishedRun(
                folder,
                trainer.model,
                settings,
                recipe,
                results,
                {name: len(rows) for name, rows in splits.items()},
                texts.own_splits,
                pictures,
                mistakes,
                trainer.hub_model_id,
                processes,
            )
        )
    # Reading, tokenizing and measuring included, and of a run that was stopped all up to its checkpoint.
    train_metrics |= {"train_samples": len(splits["train"]), "total_runtime": trainer.stopwatch.seconds()}
    # Last, since its presence says that the run is finished.
    trainer.save_metrics("train", train_metrics, combined=False)
    trainer.remove_spare_checkpoints()
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    if trainer.is_world_process_zero():
        minutes = train_metrics["total_runtime"] / 60
        print(f"\nSaved in {trainer.args.output_dir} after {minutes:.1f} minutes.", end=" ")
        if texts.labels is None:
            print(f"A classifier starts from it with --model_name_or_path {trainer.args.output_dir}")
        else:
            show_examples(trainer, texts)


def find_and_show_mistakes(trainer: RNNSentTrainer, texts: LabeledTexts, splits, predictions) -> list[str]:
    """The most confident wrong answers to the last split measured, as lines of the model card."""
    split = "test" if "test" in splits else "validation"
    rows = find_mistakes(predictions)
    names = [texts.labels.names[predictions.labels[row]] for row in rows]
    shown = [texts.splits[split][int(splits[split][int(row)]["row"])]["text"] for row in rows]
    return show_mistakes(Explainer(trainer.model, trainer.processing_class), shown, names)


def show_examples(trainer: RNNSentTrainer, texts: LabeledTexts):
    """Prints the answers to the first, a middle and the last text that were not trained on."""
    held = texts.splits[next(name for name in ("test", "validation", "train") if name in texts.splits)]
    rows = np.linspace(0, len(held) - 1, min(EXAMPLES, len(held))).astype(int)
    examples = [held[int(row)]["text"] or "" for row in rows]
    model, tokenizer = trainer.model, trainer.processing_class
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None, device=model.device)
    print("Three examples:")
    for text, answers in zip(examples, classify(examples)):
        if trainer.model.config.problem_type == "multi_label_classification":
            answers = [answer for answer in answers if answer["score"] >= 0.5]
        else:
            answers = answers[:1]
        found = ", ".join(f"{answer['label']}  {answer['score']:.3f}" for answer in answers) or "(no label)"
        line = " ".join(text.split())
        print(f"  {found}  {line if len(line) <= EXAMPLE_CHARACTERS else line[:EXAMPLE_CHARACTERS] + '...'}")


if __name__ == "__main__":
    with one_line_errors():
        main()
