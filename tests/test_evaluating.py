"""`rnnsent evaluate`: one model's metrics and those of several models' mean, against scikit-learn."""

import json
import shutil

import numpy as np
import pandas
import pytest
import torch
from conftest import run
from sklearn import metrics
from transformers import AutoTokenizer, pipeline

from modeling_rnnsent import RNNSentConfig, RNNSentForSequenceClassification
from modeling_rnnsent.labels import Labels


@pytest.fixture(scope="module")
def models(book_run, tmp_path_factory):
    """The trained model and two others near it."""
    folders = [book_run]
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = RNNSentForSequenceClassification.from_pretrained(book_run)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
        folders.append(tmp_path_factory.mktemp("models") / str(seed))
        model.save_pretrained(folders[-1])
        AutoTokenizer.from_pretrained(book_run).save_pretrained(folders[-1])
    return folders


def evaluate(*arguments, check=True):
    return run("rnnsent", "evaluate", *arguments, check=check)


def test_every_model_and_their_mean(models, reviews):
    printed = evaluate(*models, "--input", reviews / "test.csv", "--json").stdout
    results = [json.loads(line) for line in printed.splitlines()]
    assert [row.pop("model") for row in results] == [*map(str, models), "mean of all"]
    frame = pandas.read_csv(reviews / "test.csv")
    positive = []
    for folder in models:
        answers = pipeline("text-classification", model=str(folder), top_k=None)(list(frame["text"]))
        positive.append([next(part["score"] for part in answer if part["label"] == "1") for answer in answers])
    positive.append(np.mean(positive, axis=0))
    for row, scores in zip(results, positive):
        guesses = np.array(scores) > 0.5
        assert row["accuracy"] == pytest.approx(metrics.accuracy_score(frame["label"], guesses))
        assert row["f1"] == pytest.approx(metrics.f1_score(frame["label"], guesses))
        assert row["roc_auc"] == pytest.approx(metrics.roc_auc_score(frame["label"], scores), abs=1e-6)
    assert len({row["roc_auc"] for row in results}) > 1
    quickly = json.loads(evaluate(models[0], "--input", reviews / "test.csv", "--json", "--bf16").stdout)
    assert quickly["roc_auc"] == pytest.approx(results[0]["roc_auc"], abs=0.005)


def test_the_split_of_a_data_set(models, reviews, tmp_path):
    for flags, file in (([], "test.csv"), (["--split", "validation"], "validation.csv")):
        printed = evaluate(models[0], "--input", reviews, *flags, "--json").stdout
        assert printed == evaluate(models[0], "--input", reviews / file, "--json").stdout
        command = ["rnnsent", "predict", models[0], "--input"]
        run(*command, reviews, *flags, "--output", tmp_path / f"split-{file}")
        run(*command, reviews / file, "--output", tmp_path / file)
        assert (tmp_path / file).read_text() == (tmp_path / f"split-{file}").read_text()


def test_the_configuration_of_a_data_set(models, reviews, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("validation", "test"):
        shutil.copy(reviews / f"{name}.csv", folder)
    parts = [
        {"config_name": name, "data_files": [{"split": "test", "path": f"{name}.csv"}]}
        for name in ("test", "validation")
    ]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(parts)}\n---\n")
    flags = ["--dataset_config_name", "validation"]
    printed = evaluate(models[0], "--input", folder, *flags, "--json").stdout
    assert printed == evaluate(models[0], "--input", reviews / "validation.csv", "--json").stdout
    command = ["rnnsent", "predict", models[0], "--input"]
    run(*command, folder, *flags, "--output", tmp_path / "part.csv")
    run(*command, reviews / "validation.csv", "--output", tmp_path / "file.csv")
    assert (tmp_path / "part.csv").read_text() == (tmp_path / "file.csv").read_text()
    result = evaluate(models[0], "--input", reviews / "test.csv", *flags, check=False)
    assert "dataset_config_name 'validation': " in result.stderr and "a file, which has no conf" in result.stderr


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification"])
def test_values_and_several_labels_a_text(kind, book_run, reviews, tmp_path):
    """The model and its exported copy, against scikit-learn on what the pipeline answers."""
    tokenizer, frame = AutoTokenizer.from_pretrained(book_run), pandas.read_csv(reviews / "test.csv").fillna("")
    torch.manual_seed(3)
    names = ["value"] if kind == "regression" else ["good", "long", "odd"]
    config = RNNSentConfig(
        vocab_size=len(tokenizer),
        id2label=dict(enumerate(names)),
        problem_type=kind,
        initializer_range=0.5,
        hidden_size=8,
        **({"value_mean": 7.0, "value_scale": 2.0} if kind == "regression" else {}),
    )
    RNNSentForSequenceClassification(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    run("rnnsent", "export", tmp_path / "model", tmp_path / "exported")
    classify = pipeline("text-classification", model=str(tmp_path / "model"), top_k=None)
    answers = [{part["label"]: part["score"] for part in row} for row in classify(list(frame["text"]))]
    answers = np.array([[row[name] for name in names] for row in answers])
    generator = np.random.default_rng(0)
    if kind == "regression":
        labels = answers[:, 0] + generator.normal(size=len(frame)) * 0.1
        expected = {"mse": metrics.mean_squared_error(labels, answers[:, 0])}
        expected["pearson"] = np.corrcoef(labels, answers[:, 0])[0, 1]
        frame["label"] = labels
    else:
        labels = (answers > 0.5) ^ (generator.random(answers.shape) < 0.2)
        expected = {"accuracy": metrics.accuracy_score(labels, answers > 0.5)}
        expected["f1"] = metrics.f1_score(labels, answers > 0.5, average="micro")
        frame["label"] = [[name for name, given in zip(names, row) if given] for row in labels]
    frame.to_json(tmp_path / "test.jsonl", orient="records", lines=True)
    lines = evaluate(tmp_path / "model", tmp_path / "exported", "--input", tmp_path / "test.jsonl", "--json").stdout
    for row in map(json.loads, lines.splitlines()):
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-4), row
    assert len(lines.splitlines()) == 3


def test_table_and_other_columns(models, reviews, tmp_path):
    frame = pandas.read_csv(reviews / "test.csv")
    frame.rename(columns={"text": "review", "label": "stars"}).to_json(
        tmp_path / "t.jsonl", orient="records", lines=True
    )
    names = ("--text_column_name=review", "--label_column_name=stars")
    lines = evaluate(models[0], f"--input={tmp_path / 't.jsonl'}", *names).stdout.splitlines()
    metrics_shown = ["accuracy", "precision", "recall", "f1", "roc_auc", "calibration_error"]
    assert lines[0].split() == ["model", *metrics_shown] and len(lines) == 2
    assert lines[1].startswith(str(models[0])) and len(lines[1].split()) == 7


def test_integers_are_ids_unless_a_name_is_a_number():
    named = Labels.of(RNNSentConfig(id2label={0: "neg", 1: "pos"}, problem_type="single_label_classification"))
    stars = Labels.of(RNNSentConfig(id2label={0: "1", 1: "2", 2: "5"}, problem_type="single_label_classification"))
    more = Labels.of(RNNSentConfig(id2label={0: "1", 1: "2", 2: "3+"}, problem_type="single_label_classification"))
    assert named.have_ids and not stars.have_ids and not more.have_ids and stars.names == ["1", "2", "5"]


def test_what_cannot_be_used_is_said(models, reviews, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(models[1], other)
    config = json.loads((other / "config.json").read_text())
    config["id2label"], config["label2id"] = {"0": "bad", "1": "good"}, {"bad": 0, "good": 1}
    (other / "config.json").write_text(json.dumps(config))
    result = evaluate(models[0], other, "--input", reviews / "test.csv", check=False)
    assert result.returncode == 1 and "cannot be averaged" in result.stderr and "Traceback" not in result.stderr
    pandas.DataFrame({"text": ["a"], "label": [7]}).to_csv(tmp_path / "seven.csv", index=False)
    result = evaluate(models[0], "--input", tmp_path / "seven.csv", check=False)
    assert result.returncode == 1 and "'7'" in result.stderr
    result = evaluate(models[0], "--input", tmp_path / "none.csv", check=False)
    assert result.returncode == 1 and "no such file" in result.stderr
