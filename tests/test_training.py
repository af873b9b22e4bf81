"""`train.py` as a process: what it leaves behind, how recipes and flags meet, and what it refuses."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pandas
import pytest
import torch
import yaml
from conftest import ROOT, SMALL, make_reviews, run, train
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from scipy import special
from scipy.optimize import minimize
from sklearn import metrics
from transformers import AutoTokenizer, CanineTokenizer, pipeline

from modeling_rnnsent import RNNSentForSequenceClassification
from modeling_rnnsent.arguments import parse_run
from modeling_rnnsent.checkpoints import check_checkpoint, find_checkpoint
from modeling_rnnsent.errors import InputError
from modeling_rnnsent.labels import Labels
from modeling_rnnsent.metrics import metrics_for
from modeling_rnnsent.pictures import Predictions, write_pictures


def read(path):
    return json.loads(path.read_text())


def fails(*flags, **environment):
    """Runs `train.py`, which must end with status 1 and one line; returns the line."""
    result = train(*flags, check=False, **environment)
    assert result.returncode == 1, result.stdout + result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    return lines[0]


def test_output_directory_holds_everything(book_run):
    names = {path.name for path in book_run.iterdir()}
    assert names >= {
        "README.md",
        "accuracy_by_length.png",
        "config.json",
        "configuration_rnnsent.py",
        "confusion_matrix.png",
        "eval_results.json",
        "model.safetensors",
        "modeling_rnnsent.py",
        "recipe.yaml",
        "recurrence_rnnsent.py",
        "test_results.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "train_results.json",
        "trainer_state.json",
        "training_curves.png",
    }
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    for name in ("accuracy_by_length.png", "confusion_matrix.png", "training_curves.png"):
        with Image.open(book_run / name) as picture:
            assert picture.width > 300


def test_results_are_those_of_the_saved_model(book_run, reviews):
    results = read(book_run / "test_results.json")
    frame = pandas.read_csv(reviews / "test.csv")
    classify = pipeline("text-classification", model=str(book_run), top_k=None)
    positive = [
        next(answer["score"] for answer in answers if answer["label"] == "1")
        for answers in classify(list(frame["text"]))
    ]
    guesses = np.array(positive) > 0.5
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(frame["label"], guesses, average="binary")
    expected = {
        "test_accuracy": metrics.accuracy_score(frame["label"], guesses),
        "test_precision": precision,
        "test_recall": recall,
        "test_f1": f1,
        "test_roc_auc": metrics.roc_auc_score(frame["label"], positive),
        "test_loss": metrics.log_loss(frame["label"], positive),
    }
    for name, value in expected.items():
        assert math.isclose(results[name], value, abs_tol=1e-4), name
    assert results["test_accuracy"] > 0.9  # one telling word decides, and it is learned
    best = max(
        entry["eval_accuracy"]
        for entry in read(book_run / "trainer_state.json")["log_history"]
        if "eval_accuracy" in entry
    )
    assert read(book_run / "eval_results.json")["eval_accuracy"] == best


def test_model_card_reads_back(book_run):
    card = ModelCard.load(book_run / "README.md")
    assert card.data.pipeline_tag == "text-classification" and card.data.library_name == "transformers"
    results = {(item.dataset_split, item.metric_name): item.metric_value for item in card.data.eval_results}
    assert results["test", "accuracy"] == round(read(book_run / "test_results.json")["test_accuracy"], 6)
    for name in ("training_curves.png", "confusion_matrix.png", "accuracy_by_length.png"):
        assert f"({name})" in card.text
    assert {item.dataset_name for item in card.data.eval_results} == {"validation.csv", "test.csv"}
    assert re.search(
        r"`train.csv`: 400 texts for training, \d+ of `validation.csv` for validation, \d+ of `test.csv`", card.text
    )
    assert "classifier_head: sigmoid" in card.text and str(book_run.parent) not in card.text.split("## Training")[0]


def test_log_ends_with_three_classified_sentences(book_run):
    lines = (book_run.parent / "log.txt").read_text().split("Three examples:")[1].splitlines()
    examples = [line.split(None, 2) for line in lines if line.startswith("  ")]
    assert [label in "01" and 0.5 <= float(score) <= 1 for label, score, _ in examples] == [True] * 3


def test_a_log_holds_the_losses_and_no_progress_bars(book_run):
    log, errors = ((book_run.parent / name).read_text() for name in ("log.txt", "errors.txt"))
    assert log.count("'eval_loss': ") == 6 and "\r" not in log + errors and "%|" not in errors


def test_recipe_left_behind_gives_the_run_again(book_run, tmp_path):
    recipe = yaml.safe_load((book_run / "recipe.yaml").read_text())
    assert recipe["num_train_epochs"] == 6 and recipe["learning_rate"] == 0.01 and recipe["hidden_size"] == 64
    assert recipe["cell_type"] == "lstm" and recipe["split_seed"] == 1 and "output_dir" not in recipe
    train(book_run / "recipe.yaml", f"--output_dir={tmp_path / 'again'}")
    again, first = (load_file(folder / "model.safetensors") for folder in (tmp_path / "again", book_run))
    assert again.keys() == first.keys() and all(torch.equal(again[name], first[name]) for name in first)
    assert yaml.safe_load((tmp_path / "again" / "recipe.yaml").read_text()) == recipe


def test_finished_run_is_kept_unless_told_otherwise(book_run, reviews, tmp_path):
    before = (book_run / "model.safetensors").read_bytes()
    flags = ["configuration/book.yaml", f"--train_file={reviews / 'train.csv'}", "--max_train_samples=32"]
    with pytest.raises(InputError, match="holds a finished run: add --overwrite_output_dir"):
        find_checkpoint(parse_run([*flags, f"--output_dir={book_run}"]).training)
    assert (book_run / "model.safetensors").read_bytes() == before
    copy = tmp_path / "copy"
    shutil.copytree(book_run, copy)
    (copy / "photo.png").write_text("mine")
    train(*flags, f"--output_dir={copy}", "--overwrite_output_dir", "--num_train_epochs=1")
    assert (copy / "model.safetensors").read_bytes() != before
    assert (copy / "photo.png").read_text() == "mine" and not (copy / "test_results.json").exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("mine")
    for flag in ((), ("--overwrite_output_dir",)):
        with pytest.raises(InputError, match="holds other files than a run's, 'README.md' for one"):
            find_checkpoint(parse_run([*flags, f"--output_dir={tmp_path / 'notes'}", *flag]).training)


def test_ngrams_are_kept_for_the_same_labels_and_fitted_for_others(reviews, tmp_path):
    flags = ["configuration/default.yaml", f"--train_file={reviews / 'train.csv'}", *SMALL, "--max_steps=2"]
    train(*flags, f"--output_dir={tmp_path / 'first'}", "--ngram_buckets=4096")
    scores = RNNSentForSequenceClassification.from_pretrained(tmp_path / "first").ngrams.scores
    flags.append(f"--model_name_or_path={tmp_path / 'first'}")
    kept = train(*flags, f"--output_dir={tmp_path / 'kept'}")
    assert f"the n-grams of {tmp_path / 'first'} are kept" in kept.stdout
    torch.testing.assert_close(
        RNNSentForSequenceClassification.from_pretrained(tmp_path / "kept").ngrams.scores, scores, rtol=0, atol=0
    )
    frame = pandas.read_csv(reviews / "train.csv")
    frame.assign(label=frame["label"].map({0: "ham", 1: "bacon"})).to_csv(tmp_path / "other.csv", index=False)
    unsaid = [*flags[1:], "--validation_size=0.2", "--ngram_weight=1"]  # not in so many words: no recipe
    train(*unsaid, f"--output_dir={tmp_path / 'unsaid'}")
    recipe = yaml.safe_load((tmp_path / "unsaid" / "recipe.yaml").read_text())
    assert (recipe["ngram_order"], recipe["ngram_buckets"]) == (3, 4096)
    unsaid[0] = flags[1] = f"--train_file={tmp_path / 'other.csv'}"
    train(*unsaid, f"--output_dir={tmp_path / 'without'}")
    assert RNNSentForSequenceClassification.from_pretrained(tmp_path / "without").ngrams is None
    fitted = train(*flags, f"--output_dir={tmp_path / 'fitted'}")
    assert "fitting" in fitted.stdout and "are kept" not in fitted.stdout
    assert read(tmp_path / "fitted" / "eval_results.json")["eval_accuracy"] > 0.9
    # What a language model's config says of n-grams was never fitted.
    flags = [f"--train_file={reviews / 'train.csv'}", "--validation_size=0.2", *SMALL, "--max_steps=2"]
    train(*flags, "--task=language-modeling", "--ngram_order=2", f"--output_dir={tmp_path / 'language'}")
    train(*flags, f"--model_name_or_path={tmp_path / 'language'}", f"--output_dir={tmp_path / 'from'}")
    assert RNNSentForSequenceClassification.from_pretrained(tmp_path / "from").ngrams is None


def test_ngrams_stay_counted_as_was_chosen(tmp_path):
    """In the recipe that is left, from a checkpoint and in a training that goes on from the model."""
    generator, rows = np.random.default_rng(0), []
    for label in np.arange(200) % 2:  # two topics, each named in both, more often in its own
        words = np.repeat(["ham", "egg"], np.roll([8 + generator.integers(8), 2 + generator.integers(4)], label))
        rows.append({"text": " ".join(generator.permutation(words)), "label": label})
    pandas.DataFrame(rows).to_csv(tmp_path / "topics.csv", index=False)
    flags = [f"--train_file={tmp_path / 'topics.csv'}", "--validation_size=0.2", *SMALL, "--ngram_order=1"]
    flags += ["--save_strategy=steps", "--save_steps=2", "--max_steps=4", "--ngram_weight=1"]
    first = train(*flags, f"--output_dir={tmp_path / 'run'}")
    assert "each counted as often as it stands in a text" in first.stdout

    def found(name):
        results = read(tmp_path / name / "eval_results.json")
        model = RNNSentForSequenceClassification.from_pretrained(tmp_path / name)
        return model.config.ngram_presence, results["eval_loss"]

    expected = found("run")
    assert expected[0] is False and expected[1] < 0.2
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["ngram_presence"] is False
    shutil.copytree(tmp_path / "run", tmp_path / "stopped")
    (tmp_path / "stopped" / "train_results.json").unlink()
    checkpoint = f"--resume_from_checkpoint={tmp_path / 'stopped' / 'checkpoint-2'}"
    assert "n-grams alone" not in train(*flags, checkpoint, f"--output_dir={tmp_path / 'stopped'}").stdout
    assert found("stopped") == expected
    train(*flags, f"--model_name_or_path={tmp_path / 'run'}", f"--output_dir={tmp_path / 'on'}")
    assert found("on") == pytest.approx(expected)
    once = train(*flags, "--ngram_presence=true", f"--output_dir={tmp_path / 'once'}")
    assert "each counted once a text" in once.stdout and found("once")[1] > 0.6


def test_weight_and_temperature_are_the_best_of_the_validation_split(reviews, tmp_path):
    """Of the saved model, whose n-grams and layers are asked apart: no other pair gives validation a lower loss."""
    frame = pandas.read_csv(reviews / "validation.csv")
    frame["label"] ^= (np.arange(len(frame)) % 5 == 0).astype(int)  # labels that nothing can tell
    frame.to_csv(tmp_path / "validation.csv", index=False)
    flags = [f"--train_file={reviews / 'train.csv'}", f"--validation_file={tmp_path / 'validation.csv'}", *SMALL]
    train("configuration/default.yaml", *flags, "--num_train_epochs=3", f"--output_dir={tmp_path / 'run'}")
    model = RNNSentForSequenceClassification.from_pretrained(tmp_path / "run").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    batch = tokenizer(frame["text"].fillna("").tolist(), padding=True, return_tensors="pt")
    found, parts = (model.config.ngram_weight, model.config.temperature), []
    for model.config.ngram_weight in (0.0, 1.0):
        with torch.no_grad():
            parts.append(model(**batch).logits.double().numpy() * found[1])
    labels = frame["label"].to_numpy()

    def loss(pair):
        logits = (parts[0] + pair[0] * (parts[1] - parts[0])) / pair[1]
        return metrics.log_loss(labels, special.softmax(logits, axis=1))

    assert loss(found) == pytest.approx(read(tmp_path / "run" / "eval_results.json")["eval_loss"], rel=1e-4)
    assert loss((found[0], 1.0)) > loss(found)
    best = minimize(lambda pair: loss((found[0], pair[0])), [1.0], bounds=[(0.05, 50)])
    assert found[1] == pytest.approx(best.x[0], rel=0.02)
    # A grid's weight, chosen before the temperature.
    others = [
        minimize(lambda pair, weight=weight: loss((weight, pair[0])), [1.0], bounds=[(0.05, 50)]).fun
        for weight in np.linspace(0, 1, 11)
    ]
    assert loss(found) < min(others) + 0.01


def test_a_value_of_minus_one_hundred_is_learned_like_others(tmp_path):
    frame = make_reviews(60, 1)
    frame.assign(label=np.where(frame["label"], -100.0, -60.0)).to_csv(tmp_path / "data.csv", index=False)
    flags = [
        *SMALL,
        f"--train_file={tmp_path / 'data.csv'}",
        "--validation_size=0.2",
        "--per_device_train_batch_size=1",
        "--learning_rate=0.01",
        "--num_train_epochs=10",
    ]
    train(*flags, f"--output_dir={tmp_path / 'run'}")
    # Who learns of -60 alone has 800, who always answers the mean 400.
    assert read(tmp_path / "run" / "eval_results.json")["eval_mse"] < 500


def test_values_of_any_size_are_learned_alike(reviews, tmp_path):
    """Years and prices as well as 0 and 1, by the recurrent layers: the steps differ by roundings alone."""
    found = {}
    for name, scale, mean in (("small", 1.0, 0.0), ("years", 60.0, 1950.0), ("prices", 300_000.0, 10_000.0)):
        for part in ("train", "validation", "test"):
            frame = pandas.read_csv(reviews / f"{part}.csv")
            frame["label"] = frame["label"] * scale + mean + 0.25 * scale
            frame.to_csv(tmp_path / f"{name}-{part}.csv", index=False)
        flags = [f"--{part}_file={tmp_path / f'{name}-{part}.csv'}" for part in ("train", "validation", "test")]
        flags += [*SMALL, "--problem_type=regression", "--learning_rate=0.01"]
        weight, more = "--virtual_adversarial_weight=0.5", ["--num_train_epochs=8", "--logging_steps=100"]
        train(*flags, weight, *more, f"--output_dir={tmp_path / name}")
        found[name] = read(tmp_path / name / "test_results.json")["test_mse"] / scale**2
        # Beside each other in the picture, and so of one unit.
        history = read(tmp_path / name / "trainer_state.json")["log_history"]
        losses = [row["loss"] for row in history if "loss" in row]
        losses.append(read(tmp_path / name / "train_results.json")["train_loss"])
        assert len(losses) == 3 and all(0.005 < loss / scale**2 < 0.5 for loss in losses), losses
    assert max(found.values()) < 0.05, found  # of a variance of 0.25
    # Another training goes on from what the values were, though its own texts have others.
    frame = pandas.read_csv(tmp_path / "prices-train.csv")
    frame[frame["label"] > 100_000].to_csv(tmp_path / "high.csv", index=False)
    flags += [f"--train_file={tmp_path / 'high.csv'}", f"--model_name_or_path={tmp_path / 'prices'}"]
    train(*flags, "--max_steps=1", "--learning_rate=0", f"--output_dir={tmp_path / 'on'}")
    again = read(tmp_path / "on" / "test_results.json")["test_mse"] / scale**2
    assert again == pytest.approx(found["prices"], rel=1e-3)


def test_a_long_text_does_not_set_the_length_of_all_that_are_evaluated(book_run, reviews, tmp_path):
    """Batches that are read in parts, against the stock pipeline's answers to one text after the other."""
    frame = pandas.read_csv(reviews / "test.csv")
    frame.loc[7, "text"] = frame.loc[7, "text"] + " film" * 3000
    frame.to_csv(tmp_path / "test.csv", index=False)
    result = train(
        "configuration/book.yaml",
        f"--train_file={reviews / 'train.csv'}",
        f"--test_file={tmp_path / 'test.csv'}",
        f"--model_name_or_path={book_run}",
        "--max_steps=1",
        "--learning_rate=0",
        "--per_device_eval_batch_size=80",
        f"--output_dir={tmp_path / 'run'}",
    )
    assert "error" not in result.stderr
    answers = pipeline("text-classification", model=str(tmp_path / "run"), top_k=None)(list(frame["text"].fillna("")))
    scores = [{answer["label"]: answer["score"] for answer in row} for row in answers]
    measured = read(tmp_path / "run" / "test_results.json")
    rows = list(zip(scores, frame["label"].astype(str)))
    assert measured["test_accuracy"] == pytest.approx(np.mean([row[label] > 0.5 for row, label in rows]))
    assert measured["test_loss"] == pytest.approx(-np.mean([math.log(row[label]) for row, label in rows]), rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metric_for_best_model=roc_auc"], "metric_for_best_model 'roc_auc' is not what the validation split gives"),
        (["--gradient_checkpointing=true"], "gradient_checkpointing is for transformers' own layers"),
        (["--neftune_noise_alpha=5", "--input_encoding=one_hot"], "neftune_noise_alpha is for an embedding"),
        (["--report_to=nothing"], "report_to .*nothing is not supported"),
        (["--fp16=true"], "fp16 is for a GPU"),
        (["--bf16_full_eval=true"], "bf16_full_eval would leave a model of half the precision: give bf16 instead"),
        (["--torch_compile=true", "--entropy_weight=1"], "torch_compile is for labels alone"),
        (["--prediction_loss_only=true"], "prediction_loss_only must be False for a classifier"),
        (["--eval_do_concat_batches=false"], "eval_do_concat_batches must be True for a classifier"),
        ([f"--seed={2**32}"], r"seed must be below 2\*\*32, got 4294967296"),
        (["--fsdp=full_shard"], "fsdp and deepspeed are for models larger than a GPU"),
        (["--deepspeed=nothere.json"], ".*deepspeed"),
        (["--task=language-modeling", "--label_smoothing_factor=0.1"], "label_smoothing_factor must be 0 but for"),
        (
            ["--early_stopping_patience=2", "--load_best_model_at_end=false"],
            "early_stopping_patience needs load_best_model_at_end",
        ),
        (
            ["--early_stopping_patience=2", "--load_best_model_at_end", "--eval_strategy=no", "--save_strategy=best"],
            "early_stopping_patience needs an eval_strategy, 'epoch' or 'steps', got 'no'",
        ),
        (
            ["--dataloader_drop_last=true", "--per_device_train_batch_size=512"],
            "dataloader_drop_last leaves nothing of 400 texts in steps of 512",
        ),
        (["--lr_scheduler_type=cosine_with_min_lr"], "lr_scheduler_type 'cosine_with_min_lr' cannot be used: .*min_lr"),
    ],
)
def test_what_turns_out_to_be_unusable_is_one_line(reviews, tmp_path, flags, message):
    (tmp_path / "one_class.csv").write_text("text,label\na film,1\nanother,1\n")
    data = [f"--train_file={reviews / 'train.csv'}", f"--validation_file={tmp_path / 'one_class.csv'}"]
    flags = [*data, *SMALL, "--max_steps=2", f"--output_dir={tmp_path / 'run'}", *flags]
    result = train("configuration/book.yaml", *flags, check=False)
    last = result.stderr.splitlines()[-1]  # a progress bar may stand before it
    assert result.returncode == 1 and re.search(f"error: {message}", last) and "Traceback" not in result.stderr, last


def test_pictures_of_many_classes_and_of_prices(tmp_path):
    generator = np.random.default_rng(0)
    for names in (
        [f"class {index}" for index in range(300)],
        ["$5_$10", "$10 {x} $"],
        ["差评", "好评"],
        ["__label__a", "__label__b"],
        ["long " * 20, "b"],
    ):
        scores = generator.dirichlet(np.ones(len(names)), 400)
        predictions = Predictions(scores, generator.integers(0, len(names), 400), np.full(400, 9))
        labels = Labels("single_label_classification", names)
        with warnings.catch_warnings(action="error", category=UserWarning):  # of letters that the font lacks
            assert "confusion_matrix.png" in write_pictures(tmp_path, [], predictions, labels)
            of_several = Predictions(scores, (scores > 0.3).astype(float), predictions.lengths)
            labels = Labels("multi_label_classification", names)
            assert "f1_by_label.png" in write_pictures(tmp_path, [], of_several, labels)
        with Image.open(tmp_path / "confusion_matrix.png") as picture:
            assert max(picture.size) < 4000
        with Image.open(tmp_path / "f1_by_label.png") as picture:
            assert max(picture.size) < 4000


@pytest.mark.parametrize(
    ("labels", "expected", "key", "picture"),
    [
        (
            lambda frame: frame["label"].map({0: ["bad"], 1: ["good", "nice"]}),
            ["bad", "good", "nice"],
            "accuracy",
            "f1_by_label",
        ),
        (lambda frame: frame["label"] * 2.0 - 0.5, ["value"], "pearson", "predicted_values"),
        (
            lambda frame: [("low", "high", "mid")[i % 3] for i in range(len(frame))],
            ["high", "low", "mid"],
            "f1",
            "confusion_matrix",
        ),
    ],
    ids=["multi-label", "regression", "three classes"],
)
def test_other_kinds_of_labels_train_and_load(labels, expected, key, picture, tmp_path):
    frame = make_reviews(120)
    frame["label"] = labels(frame)
    frame.to_json(tmp_path / "data.jsonl", orient="records", lines=True)
    train(
        "configuration/default.yaml",  # which names accuracy: regression takes its own metric instead
        f"--train_file={tmp_path / 'data.jsonl'}",
        *SMALL,
        "--num_train_epochs=2",
        "--validation_size=0.2",
        "--test_size=0.2",
        "--report_to=none",
        "--greater_is_better=true",  # as it is of the accuracy
        f"--output_dir={tmp_path / 'run'}",
    )
    again = parse_run([str(tmp_path / "run" / "recipe.yaml")])
    metric = again.training.metric_for_best_model
    state = read(tmp_path / "run" / "trainer_state.json")
    found = [row[f"eval_{metric}"] for row in state["log_history"] if "eval_loss" in row]
    assert metric == ("mse" if key == "pearson" else "accuracy")
    assert state["best_metric"] == (min if metric == "mse" else max)(found[:2])
    other = parse_run([str(tmp_path / "run" / "recipe.yaml"), "--train_file=other.csv"])
    assert again.model.problem_type and other.model.problem_type is None
    assert f"test_{key}" in read(tmp_path / "run" / "test_results.json")
    names = {path.stem for path in (tmp_path / "run").glob("*.png")}
    kinds = {"confusion_matrix", "f1_by_label", "predicted_values", "training_curves"}
    assert names & kinds == {picture, "training_curves"}
    with Image.open(tmp_path / "run" / f"{picture}.png") as drawn:
        assert drawn.width > 300
    model = RNNSentForSequenceClassification.from_pretrained(tmp_path / "run")
    assert list(model.config.id2label.values()) == expected
    ModelCard.load(tmp_path / "run" / "README.md")


def test_goes_on_from_a_trained_model(book_run, reviews, tmp_path):
    train(
        f"--model_name_or_path={book_run}",
        f"--train_file={reviews / 'train.csv'}",
        "--learning_rate=0",
        "--num_train_epochs=1",
        "--classifier_dropout=0.2",
        f"--output_dir={tmp_path / 'run'}",
    )
    first = RNNSentForSequenceClassification.from_pretrained(book_run)
    second = RNNSentForSequenceClassification.from_pretrained(tmp_path / "run")
    assert second.config.classifier_dropout == 0.2 and second.config.classifier_head == "sigmoid"
    torch.testing.assert_close(second.state_dict(), first.state_dict())
    vocabularies = [AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (book_run, tmp_path / "run")]
    assert vocabularies[0] == vocabularies[1]
    # How a vocabulary is built is said by the run that built it alone.
    said = [yaml.safe_load((folder / "recipe.yaml").read_text()).keys() for folder in (book_run, tmp_path / "run")]
    assert {"min_frequency", "keep_punctuation"} <= said[0] - said[1]


def test_a_model_that_cannot_be_gone_on_from_is_named(book_run, reviews, tmp_path):
    data = [f"--train_file={reviews / 'train.csv'}", f"--output_dir={tmp_path / 'run'}"]
    broken = tmp_path / "broken"
    shutil.copytree(book_run, broken, ignore=shutil.ignore_patterns("checkpoint-*"))
    (broken / "tokenizer.json").write_bytes((book_run / "tokenizer.json").read_bytes()[:500])
    assert f"cannot load the tokenizer '{broken}'" in fails(f"--model_name_or_path={broken}", *data)
    CanineTokenizer().save_pretrained(tmp_path / "slow")
    assert "CanineTokenizer, written in Python" in fails(f"--tokenizer_name={tmp_path / 'slow'}", *data)
    other = [f"--model_name_or_path={book_run}", *data]
    assert "does not fit the settings given" in fails(*other, "--hidden_size=32")


@pytest.mark.slow
class TestMoreRuns:
    def test_three_classes_need_another_head(self, book_run, tmp_path):
        frame = make_reviews(60)
        frame["label"] = [index % 3 for index in range(60)]
        frame.to_csv(tmp_path / "three.csv", index=False)
        flags = [f"--model_name_or_path={book_run}", f"--train_file={tmp_path / 'three.csv'}"]
        assert "two classes" in fails(*flags, f"--output_dir={tmp_path / 'run'}")
        train(*flags, "--classifier_head=softmax", f"--output_dir={tmp_path / 'run'}", "--num_train_epochs=1")
        assert RNNSentForSequenceClassification.from_pretrained(tmp_path / "run").config.num_labels == 3

    def test_overwriting_leaves_nothing_of_the_run_before(self, book_run, reviews, tmp_path):
        output = tmp_path / "run"
        shutil.copytree(book_run, output)
        frame = pandas.read_csv(reviews / "train.csv")
        frame["label"] = frame["label"] * 0.5
        frame.to_csv(tmp_path / "values.csv", index=False)
        flags = [f"--train_file={tmp_path / 'values.csv'}", *SMALL, f"--output_dir={output}", "--overwrite_output_dir"]
        assert "lies in the output_dir" in fails(*flags, f"--model_name_or_path={output}")
        assert (output / "confusion_matrix.png").exists()
        train(*flags, "--num_train_epochs=1")
        assert not (output / "confusion_matrix.png").exists() and not (output / "test_results.json").exists()

    def test_reused_tokenizer_early_stopping_and_several_workers(self, book_run, reviews, tmp_path):
        train(
            f"--train_file={reviews / 'train.csv'}",
            *SMALL,
            f"--tokenizer_name={book_run}",
            "--preprocessing_num_workers=2",
            "--learning_rate=0",
            "--eval_strategy=epoch",
            "--save_strategy=epoch",
            "--load_best_model_at_end",
            "--early_stopping_patience=2",
            "--num_train_epochs=9",
            f"--output_dir={tmp_path / 'run'}",
        )
        vocabularies = [AutoTokenizer.from_pretrained(path).get_vocab() for path in (book_run, tmp_path / "run")]
        assert vocabularies[0] == vocabularies[1]
        # a model that does not learn is stopped after its first evaluation and two that were no better
        assert read(tmp_path / "run" / "trainer_state.json")["epoch"] == 3


class TestRecipesAndFlags:
    @staticmethod
    def recipe(tmp_path, **keys):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(keys))
        return str(tmp_path / "recipe.yaml")

    def test_a_flag_beats_the_recipe(self, tmp_path):
        path = self.recipe(tmp_path, hidden_size=32, learning_rate=0.01, bidirectional=True, seed=3)
        parsed = parse_run([path, "--hidden_size", "48", "--bidirectional=false"])
        assert (parsed.model.hidden_size, parsed.model.bidirectional) == (48, False)
        assert (parsed.training.learning_rate, parsed.training.seed) == (0.01, 3)
        assert parse_run(["--bidirectional"]).model.bidirectional is True

    def test_no_limit_of_steps_is_said_by_zero_or_less(self, tmp_path):
        for steps in ("0", "-1"):
            training = parse_run([self.recipe(tmp_path, max_steps=10), f"--max_steps={steps}"]).training
            assert training.max_steps == -1

    def test_a_flag_that_names_a_start_replaces_the_recipes(self, tmp_path):
        parsed = parse_run([self.recipe(tmp_path, word_vectors="word2vec"), "--model_name_or_path=runs/language"])
        assert (parsed.model.word_vectors, parsed.model.model_name_or_path) == (None, "runs/language")
        parsed = parse_run([self.recipe(tmp_path, model_name_or_path="runs/language"), "--word_vectors=word2vec"])
        assert (parsed.model.word_vectors, parsed.model.model_name_or_path) == ("word2vec", None)

    def test_what_was_found_out_on_other_data_is_found_out_anew(self, tmp_path):
        found = {"temperature": 1.5, "ngram_weight": 0.3, "ngram_buckets": 64, "problem_type": "regression"}
        found["ngram_presence"] = False
        path = self.recipe(tmp_path, **found, ngram_order=2, train_file="old.csv")
        assert {name: getattr(parse_run([path]).model, name) for name in found} == found
        model = parse_run([path, "--train_file=new.csv", "--ngram_weight=0.5"]).model
        others = {**dict.fromkeys(found), "ngram_weight": 0.5}
        assert {name: getattr(model, name) for name in found} == others and model.ngram_order == 2

    def test_what_a_run_found_out_is_not_anothers(self, tmp_path):
        found = {"temperature": 1.5, "ngram_weight": 0.3, "ngram_buckets": 64, "ngram_presence": False}
        path = self.recipe(tmp_path, **found, ngram_order=2, train_file="same.csv")  # as a run leaves it

        def settings(*argv):
            model = parse_run([path, *argv]).model
            return {name: getattr(model, name) for name in found}

        assert settings() == settings("--output_dir=again", "--num_threads=1") == found
        assert settings("--seed=2") == settings("--hidden_size=9") == dict.fromkeys(found)
        assert settings("--temperature=1") == {**found, "temperature": 1.0}
        path = self.recipe(tmp_path, ngram_weight=1.0, train_file="same.csv")  # somebody's choice
        assert settings("--seed=2") == {**dict.fromkeys(found), "ngram_weight": 1.0}

    def test_a_flag_that_names_data_replaces_all_of_the_recipes_data(self, tmp_path):
        source = {"dataset_name": "some/data", "text_column_name": "review", "max_train_samples": 100}
        source |= {"holdout_block_size": 50, "unlabeled_split": "more"}
        path = self.recipe(tmp_path, **source, validation_size=0.2)
        assert parse_run([path]).data.dataset_name == "some/data"
        data = parse_run([path, "--train_file", "mine.csv"]).data
        assert (data.dataset_name, data.text_column_name, data.train_file) == (None, "text", "mine.csv")
        assert data.max_train_samples is None and data.validation_size == 0.2  # how to split is not where from
        assert (data.holdout_block_size, data.unlabeled_split) == (parse_run([]).data.holdout_block_size, None)
        data = parse_run([path, "--max_train_samples", "50", "--holdout_block_size", "9", "--test_file", "t.csv"]).data
        assert (data.dataset_name, data.max_train_samples, data.holdout_block_size) == ("some/data", 50, 9)
        assert (data.text_column_name, data.test_file, data.unlabeled_split) == ("review", "t.csv", "more")

    def test_numbers_as_yaml_reads_them(self, tmp_path):
        (tmp_path / "recipe.yaml").write_text(
            "learning_rate: 1e-3\nweight_decay: 0\nlr_scheduler_kwargs: {num_cycles: 2}\n"
        )
        parsed = parse_run([str(tmp_path / "recipe.yaml")])
        assert parsed.training.learning_rate == 0.001 and parsed.training.lr_scheduler_kwargs == {"num_cycles": 2}

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["--hiden_size", "3"], "unknown flag --hiden_size. Did you mean '--hidden_size'"),
            (["--teacher", "runs/imdb"], "unknown flag --teacher. Did you mean '--teacher_name_or_path'"),
            (["--no_bidirectional"], "unknown flag --no_bidirectional. Did you mean '--bidirectional false'"),
            (["--per_device_eval_batch_size", "0"], "per_device_eval_batch_size must be at least 1, got 0"),
            (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps must be at least 1, got 0"),
            (["--seed=-1"], "seed must be at least 0, got -1"),
            (["--num_train_epochs", "0"], "num_train_epochs must be above 0 and finite, got 0"),
            (["--num_train_epochs", "inf"], "num_train_epochs must be above 0 and finite, got inf"),
            (["--early_stopping_patience=0"], "early_stopping_patience must be at least 1, got 0"),
            (["--hidden_size", "many"], "hidden_size.*many"),
            (["--cell_type", "elman"], "cell_type.*elman.*rnn"),
            (["missing.yaml"], "there is no recipe 'missing.yaml'"),
            (["--seed", "1", "stray"], "cannot read 'stray'"),
        ],
    )
    def test_a_mistake_is_named(self, argv, message):
        with pytest.raises(InputError, match=message):
            parse_run(argv)

    def test_a_recipes_mistake_is_named(self, tmp_path):
        with pytest.raises(InputError, match="unknown key 'num_epochs'.*Did you mean 'num_train_epochs'"):
            parse_run([self.recipe(tmp_path, num_epochs=3)])
        (tmp_path / "on.yaml").write_text("on: epoch\n")
        with pytest.raises(InputError, match="unknown key True"):
            parse_run([str(tmp_path / "on.yaml")])
        (tmp_path / "merged.yaml").write_text("<<: {seed: 1}\nhidden_size: 8\n")
        assert parse_run([str(tmp_path / "merged.yaml")]).training.seed == 1
        (tmp_path / "twice.yaml").write_text("seed: 1\nhidden_size: 8\nseed: 2\n")
        with pytest.raises(InputError, match="twice.yaml is not readable as YAML: seed stands there twice"):
            parse_run([str(tmp_path / "twice.yaml")])
        (tmp_path / "list.yaml").write_text("- a\n- b\n")
        with pytest.raises(InputError, match="`key: value` lines, got list"):
            parse_run([str(tmp_path / "list.yaml")])

    @pytest.mark.parametrize("path", sorted((ROOT / "configuration").glob("*.yaml")), ids=lambda path: path.name)
    def test_every_recipe_is_readable(self, path):
        parsed = parse_run([str(path)])
        assert parsed.training.output_dir == f"runs/{path.stem}" and parsed.data.dataset_name


class TestWhatGoesWrong:
    @pytest.mark.parametrize(
        ("steps", "message"),
        [
            (["--logging_steps=1"], "A learning_rate below 1e+38"),
            (["--logging_steps=1000"], "answers are no finite numbers"),
            (["--logging_steps=1000", "--task=language-modeling"], "the loss is nan a token"),
        ],
    )
    def test_training_that_diverges_is_ended(self, steps, message, reviews, tmp_path):
        flags = [f"--{name}_file={reviews / name}.csv" for name in ("train", "validation")]
        flags += [*SMALL, "--learning_rate=1e38", *steps, "--eval_strategy=epoch"]
        error = fails(*flags, f"--output_dir={tmp_path / 'run'}")
        assert "the training has diverged" in error and message in error

    @pytest.mark.parametrize(
        ("flag", "message"),
        [
            ("--label_column_name=stars", "no column 'stars'"),
            pytest.param("--hidden_size=0", "`hidden_size` must be an integer", marks=pytest.mark.slow),
            pytest.param("--min_frequency=100000", "vocabulary is empty", marks=pytest.mark.slow),
            pytest.param("--max_length=0", "max_length", marks=pytest.mark.slow),
            pytest.param("--load_best_model_at_end", "save and eval strategy", marks=pytest.mark.slow),
        ],
    )
    def test_errors_are_one_line_with_status_1(self, flag, message, tmp_path, reviews):
        assert message in fails(f"--train_file={reviews / 'train.csv'}", flag, f"--output_dir={tmp_path / 'run'}")
        assert not (tmp_path / "run").exists()

    def test_full_disk_ends_the_run_with_one_line_and_the_last_good_checkpoint(self, tmp_path, reviews):
        disk = tmp_path / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True)
        if mounted.returncode:
            pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
        try:
            line = fails(
                f"--train_file={reviews / 'train.csv'}",
                *SMALL,
                "--embedding_size=1024",  # three checkpoints of 1.2 MB do not fit
                "--save_strategy=epoch",
                f"--output_dir={disk / 'run'}",
            )
            assert "the disk is full" in line and "last good checkpoint is" in line
            checkpoint = line.split("last good checkpoint is ")[1].strip()
            assert RNNSentForSequenceClassification.from_pretrained(checkpoint).config.embedding_size == 1024
            for left in (disk / "run").glob("checkpoint-*"):  # what could not be written to its end is gone
                check_checkpoint(str(left))
        finally:
            subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("classes", [2, 4])
def test_single_label_metrics_equal_scikit_learns(classes):
    generator = np.random.default_rng(0)
    logits, truth = generator.normal(size=(50, classes)), generator.integers(classes, size=50)
    found = metrics_for(Labels("single_label_classification", list("abcd")[:classes]))(
        type("Prediction", (), {"predictions": logits, "label_ids": truth})
    )
    guesses = logits.argmax(1)
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    average = "binary" if classes == 2 else "macro"
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, guesses))
    assert found["f1"] == pytest.approx(metrics.f1_score(truth, guesses, average=average))
    expected = metrics.roc_auc_score(truth, scores[:, 1] if classes == 2 else scores, multi_class="ovr")
    assert found["roc_auc"] == pytest.approx(expected, abs=1e-6)


def test_classes_that_a_split_lacks_take_nothing_from_the_means():
    logits, truth = 9 * np.eye(4)[[0, 1, 1]], np.array([0, 1, 1])
    measure = metrics_for(Labels("single_label_classification", list("abcd")))
    found = measure(type("Prediction", (), {"predictions": logits, "label_ids": truth}))
    assert found["precision"] == found["recall"] == found["f1"] == 1 and "roc_auc" not in found


def test_a_plateau_is_where_the_metric_becomes_no_better(reviews, tmp_path):
    """While the accuracy rises the learning rate stays; with a patience of 0 it falls where it does not."""
    flags = [f"--{name}_file={reviews / name}.csv" for name in ("train", "validation")]
    flags += [*SMALL, "--lr_scheduler_type=reduce_lr_on_plateau", '--lr_scheduler_kwargs={"patience": 0}']
    flags += ["--metric_for_best_model=accuracy", "--eval_strategy=epoch", "--logging_strategy=epoch"]
    train(*flags, "--learning_rate=0.005", "--num_train_epochs=6", f"--output_dir={tmp_path / 'run'}")
    history = read(tmp_path / "run" / "trainer_state.json")["log_history"]
    found = [row["eval_accuracy"] for row in history if "eval_accuracy" in row]
    rates = [row["learning_rate"] for row in history if "learning_rate" in row]
    expected, rate = [], 0.005
    for step, accuracy in enumerate(found):
        expected.append(rate)  # logged before the evaluation that may change it
        rate = rate / 10 if step and accuracy <= max(found[:step]) else rate
    assert max(found) > found[0] and rates == pytest.approx(expected)


def test_multi_label_and_regression_metrics_equal_scikit_learns():
    generator = np.random.default_rng(1)
    logits, truth = generator.normal(size=(40, 3)), generator.integers(2, size=(40, 3)).astype(float)
    found = metrics_for(Labels("multi_label_classification", list("abc")))(
        type("Prediction", (), {"predictions": logits, "label_ids": truth})
    )
    assert found["f1"] == pytest.approx(metrics.f1_score(truth, logits > 0, average="micro"))
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, logits > 0))
    assert found["roc_auc"] == pytest.approx(metrics.roc_auc_score(truth, logits), abs=1e-6)
    values, targets = generator.normal(size=(40, 1)), generator.normal(size=40)
    found = metrics_for(Labels("regression"))(type("Prediction", (), {"predictions": values, "label_ids": targets}))
    assert found["mse"] == pytest.approx(metrics.mean_squared_error(targets, values), rel=1e-5)
    assert found["pearson"] == pytest.approx(np.corrcoef(targets, values[:, 0])[0, 1], rel=1e-5)


@pytest.mark.slow
def test_accelerate_launch_and_the_console_script(reviews, tmp_path):
    scripts = os.path.dirname(sys.executable)
    run(
        os.path.join(scripts, "accelerate"),
        "launch",
        "train.py",
        "configuration/book.yaml",
        f"--train_file={reviews / 'train.csv'}",
        "--num_train_epochs=1",
        f"--output_dir={tmp_path / 'run'}",
    )
    result = run(os.path.join(scripts, "rnnsent"), "predict", tmp_path / "run", "a wonderful film", "dull")
    assert [len(line.split("\t")) for line in result.stdout.splitlines()] == [3, 3]
    weights = tmp_path / "run" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    broken = run(os.path.join(scripts, "rnnsent"), "predict", tmp_path / "run", "dull", check=False)
    assert broken.returncode == 1 and "Traceback" not in broken.stderr
    assert f"error: cannot load the model '{tmp_path / 'run'}'" in broken.stderr
