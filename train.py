"""
Trains a recurrent text classifier from a recipe:

    accelerate launch train.py configuration/RECIPE.yaml [--field value ...]

`python train.py` does the same in one process. `--help` lists every field; a flag beats the recipe.
"""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

from pathlib import Path

import datasets
import numpy as np
import transformers
import yaml
from transformers import AutoTokenizer, EarlyStoppingCallback, pipeline, set_seed

from modeling_rnnsent import RNNSentConfig, RNNSentForSequenceClassification
from modeling_rnnsent.arguments import Run, parse_run
from modeling_rnnsent.data import LabeledTexts, PaddingCollator, load_labeled_texts, tokenize
from modeling_rnnsent.errors import InputError, one_line_errors
from modeling_rnnsent.metrics import metrics_for, probabilities
from modeling_rnnsent.reports import Predictions, write_model_card, write_pictures
from modeling_rnnsent.tokenization import build_tokenizer
from modeling_rnnsent.training import RNNSentTrainer, prepare_output_dir, use_threads

EXAMPLES = (
    "I loved every minute of this film: great story, wonderful actors.",
    "What a waste of time. The plot is dull and the acting is terrible.",
    "It has its moments, but I would not watch it again :(",
)


def main():
    run = parse_run()
    arguments = run.training
    if not arguments.should_log:
        datasets.disable_progress_bars()
    use_threads(arguments)
    with arguments.main_process_first():
        checkpoint = prepare_output_dir(arguments)
    set_seed(arguments.seed)

    with arguments.main_process_first(desc="preparing the data"):
        texts = load_labeled_texts(run.data, run.model.problem_type)
        tokenizer = load_tokenizer(run, texts)
        splits = tokenize(texts.splits, tokenizer, run.data.max_length, run.data.preprocessing_num_workers)
    model = load_model(run, texts, tokenizer)
    say(arguments, describe(model, splits))

    trainer = RNNSentTrainer(
        model=model,
        args=arguments,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        data_collator=PaddingCollator(tokenizer.pad_token_id),
        compute_metrics=metrics_for(texts.labels),
        callbacks=stopping(arguments),
    )
    result = trainer.train(resume_from_checkpoint=checkpoint)
    report(trainer, run, texts, splits, result.metrics)


def say(arguments, text: str):
    if arguments.should_log:
        print(text, flush=True)


def load_tokenizer(run: Run, texts: LabeledTexts):
    name = run.data.tokenizer_name or run.model.model_name_or_path
    if name is not None:
        return AutoTokenizer.from_pretrained(name)
    return build_tokenizer(texts.texts(), run.data.max_vocab_size, run.data.min_frequency)


def load_model(run: Run, texts: LabeledTexts, tokenizer) -> RNNSentForSequenceClassification:
    given = {name: value for name, value in vars(run.model).items() if value is not None}
    name = given.pop("model_name_or_path", None)
    given.update(texts.labels.config, pad_token_id=tokenizer.pad_token_id)
    if name is None:
        return RNNSentForSequenceClassification(RNNSentConfig(vocab_size=len(tokenizer), **given))
    model = RNNSentForSequenceClassification.from_pretrained(name, ignore_mismatched_sizes=True, **given)
    if model.config.vocab_size < len(tokenizer):
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {name!r} only {model.config.vocab_size}: "
            "use the tokenizer that the model was trained with."
        )
    return model


def describe(model, splits) -> str:
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in splits.items())
    return f"{sizes} texts; {model.config.vocab_size:,} words; {model.num_parameters():,} parameters"


def stopping(arguments) -> list:
    if arguments.early_stopping_patience is None:
        return []
    if not arguments.load_best_model_at_end:
        raise InputError("early_stopping_patience needs load_best_model_at_end.")
    return [EarlyStoppingCallback(arguments.early_stopping_patience)]


def report(trainer: RNNSentTrainer, run: Run, texts: LabeledTexts, splits, train_metrics: dict):
    """Saves the model and everything that tells how good it is, then shows three classified sentences."""
    results = {}
    for split, prefix in (("validation", "eval"), ("test", "test")):
        if split in splits:
            output = trainer.predict(splits[split], metric_key_prefix=prefix)
            trainer.log_metrics(prefix, output.metrics)
            trainer.save_metrics(prefix, {**output.metrics, f"{prefix}_samples": len(splits[split])}, combined=False)
            results[split] = {key.removeprefix(f"{prefix}_"): value for key, value in output.metrics.items()}
            predictions = Predictions(
                probabilities(output.predictions, texts.labels.problem_type),
                np.asarray(output.label_ids),
                np.array(splits[split]["length"]),
            )
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        leave_for_people(trainer, run, texts, results, {name: len(rows) for name, rows in splits.items()}, predictions)
    # Last, since its presence says that the run is finished.
    trainer.save_metrics("train", {**train_metrics, "train_samples": len(splits["train"])}, combined=False)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    if trainer.is_world_process_zero():
        show_examples(trainer)


def leave_for_people(trainer: RNNSentTrainer, run: Run, texts: LabeledTexts, results: dict, sizes: dict, predictions):
    """Pictures, recipe and model card in the run's directory."""
    folder = Path(trainer.args.output_dir)
    # A pickle that `Trainer` writes beside the weights; the recipe says the same to whoever loads the directory.
    (folder / "training_args.bin").unlink(missing_ok=True)
    write_pictures(folder, trainer.state.log_history, predictions, texts.labels)
    settings = run.settings()
    recipe = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    (folder / "recipe.yaml").write_text(
        f"# Every setting that differs from its default; transformers {transformers.__version__}.\n{recipe}",
        encoding="utf-8",
    )
    write_model_card(folder, trainer.model, settings, recipe, results, sizes)


def show_examples(trainer: RNNSentTrainer):
    classify = pipeline("text-classification", model=trainer.model, tokenizer=trainer.processing_class)
    print(f"\nSaved in {trainer.args.output_dir}. Three examples:")
    for text, answer in zip(EXAMPLES, classify(list(EXAMPLES))):
        print(f"  {answer['label']}  {answer['score']:.3f}  {text}")


if __name__ == "__main__":
    with one_line_errors():
        main()
