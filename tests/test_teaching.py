"""What teachers say of texts without labels: several trained models, and document vectors."""

import random
import re
import sys

import datasets
import numpy as np
import pytest
import torch
from conftest import SMALL, make_reviews, train
from datasets import Dataset, DatasetDict
from test_bulk import TOKENIZER, make_model, make_texts
from test_training import fails
from transformers import AutoTokenizer

from modeling_rnnsent import RNNSentForSequenceClassification
from modeling_rnnsent.bulk import BulkClassifier
from modeling_rnnsent.documents import answer_by_documents
from modeling_rnnsent.errors import InputError
from modeling_rnnsent.labels import Labels
from modeling_rnnsent.scoring import load_scorer
from modeling_rnnsent.teaching import ask_teachers
from modeling_rnnsent.tokenization import build_tokenizer


@pytest.fixture(autouse=True)
def without_cache():
    datasets.disable_caching()
    yield
    datasets.enable_caching()


def make_topics(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Texts of two topics of three hundred words each, those of the first topic before the others."""
    generator, labels = random.Random(seed), np.arange(count) * 2 // count
    return [" ".join(f"{'ab'[label]}{generator.randrange(300)}" for _ in range(12)) for label in labels], labels


def answer(problem_type="single_label_classification", columns=2, convert=lambda labels: labels, seed=1):
    (few, labels), (others, other_labels), (unlabeled, truth) = map(make_topics, (8, 60, 3000), (0, 1, 2))
    tokenizer = build_tokenizer([*few, *unlabeled])
    answers = answer_by_documents(
        few, convert(labels), others, convert(other_labels), unlabeled, problem_type, columns, tokenizer, seed
    )
    assert [part.shape for part in answers] == [(60, columns), (3000, columns)]
    return answers[1], truth


def test_document_vectors_tell_topics_by_words_that_no_labelled_text_has():
    # Eight labelled texts have a sixth of the words; which of the others go together is told by the unlabelled ones.
    logits, truth = answer()
    assert np.mean(logits.argmax(axis=1) == truth) > 0.97
    assert np.array_equal(logits, answer()[0]) and not np.array_equal(logits, answer(seed=2)[0])


def test_document_vectors_leave_out_what_is_known_to_be_alike_under_every_label():
    def answer(number_labeled: int, fillers: int) -> np.ndarray:
        (few, labels), (unlabeled, _) = make_topics(number_labeled, 0), make_topics(200, 1)
        few, unlabeled = ([f"{text} so{' so' * fillers}" for text in part] for part in (few, unlabeled))
        given = (few, labels, few, labels, unlabeled, "single_label_classification", 2)
        return answer_by_documents(*given, build_tokenizer([*few, *unlabeled]), 1)[1]

    # Whatever the number of fillers, the runs with another word are the same, and all runs of fillers alone left out.
    assert np.array_equal(answer(8, 2), answer(8, 9))
    # Of four texts it is not known yet.
    assert not np.array_equal(answer(4, 2), answer(4, 9))


def test_of_texts_without_a_run_that_tells_nothing_is_known():
    (few, labels), (unlabeled, _) = make_topics(8, 0), make_topics(200, 1)
    unlabeled = [*unlabeled, "", "unheard", "of"]
    given = (few, labels, few, labels, unlabeled, "single_label_classification", 2)
    logits = answer_by_documents(*given, build_tokenizer([*few, *unlabeled]), 1)[1]
    assert np.array_equal(logits[-1], logits[-2]) and np.array_equal(logits[-1], logits[-3])
    assert not np.array_equal(logits[0], logits[1])


def test_document_vectors_are_trained_once(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    datasets.enable_caching()
    first, _ = answer()
    assert "trained before" not in capsys.readouterr().out
    (kept,) = tmp_path.glob("doc2vec/*")
    again, _ = answer()
    assert f"trained before: {kept}" in capsys.readouterr().out and np.array_equal(first, again)
    answer(seed=2)
    np.save(kept, np.load(kept)[::-1])  # what is read is what is used
    other, _ = answer()
    assert len(list(tmp_path.glob("doc2vec/*"))) == 2 and not np.array_equal(first, other)
    kept.write_bytes(b"")  # a power cut
    assert np.array_equal(answer()[0], first) and np.load(kept).shape
    datasets.disable_caching()
    capsys.readouterr()
    assert np.array_equal(answer()[0], first) and "trained before" not in capsys.readouterr().out


def test_document_vectors_answer_every_kind_of_label():
    logits, truth = answer("multi_label_classification", 2, lambda labels: np.eye(2, dtype=np.float32)[labels])
    assert np.mean((logits > 0) == np.eye(2)[truth]) > 0.97
    values, truth = answer("regression", 1, lambda labels: labels * 4.0 - 7)
    assert np.corrcoef(values[:, 0], truth)[0, 1] > 0.9 and np.abs(values[:, 0] - (truth * 4 - 7)).mean() < 1.5
    small, _ = answer("regression", 1, lambda labels: (labels * 4.0 - 7) / 1e5)  # whatever the unit
    np.testing.assert_allclose(small * 1e5, values, atol=1e-3)
    # A class that no labelled text has is not the answer to any.
    logits, truth = answer(columns=3)
    assert np.mean(logits.argmax(axis=1) == truth) > 0.97


def test_document_vectors_say_what_they_lack(monkeypatch):
    texts, labels = ["one two", "three four"], np.array([0, 1])
    given = (texts, labels, texts, labels, ["five six"], "single_label_classification", 2, build_tokenizer(texts))
    with pytest.raises(InputError, match="5 times"):
        answer_by_documents(*given)
    monkeypatch.setitem(sys.modules, "gensim", None)
    with pytest.raises(InputError, match="pip install gensim"):
        answer_by_documents(*given)


def test_few_texts_without_an_error_make_no_teacher_many_times_as_sure(book_run, capsys):
    dataset = Dataset.from_pandas(make_reviews(200, 5))
    tokenizer = AutoTokenizer.from_pretrained(book_run)
    labels = Labels("single_label_classification", ["0", "1"])
    splits = DatasetDict(train=dataset, validation=dataset)
    answers = np.array(ask_teachers([str(book_run)], splits, dataset, labels, tokenizer)["label"])
    splits["validation"] = dataset.select(np.flatnonzero(answers.argmax(axis=1) == dataset["label"][:])[:20])
    capsys.readouterr()
    ask_teachers([str(book_run)], splits, dataset, labels, tokenizer)
    (weight,) = re.findall(r" (\S+) \([\d.]+\)", capsys.readouterr().out)[:1]
    assert float(weight) < 10


def test_teachers_are_weighted_by_what_they_know(book_run, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(book_run)
    model = RNNSentForSequenceClassification.from_pretrained(book_run)
    torch.nn.init.zeros_(model.classifier.out_proj.weight)
    torch.nn.init.constant_(model.classifier.out_proj.bias, 1.0)  # as sure of every text
    model.save_pretrained(tmp_path / "ignorant")
    tokenizer.save_pretrained(tmp_path / "ignorant")
    make_model(
        tmp_path / "other",
        problem_type="multi_label_classification",
        id2label={0: "0", 1: "1"},
        label2id={"0": 0, "1": 1},
    )
    splits = {
        name: Dataset.from_pandas(make_reviews(200, seed)) for seed, name in enumerate(("train", "validation"), 5)
    }
    unlabeled = Dataset.from_dict({"text": make_reviews(300, 7)["text"].tolist()})
    names = [str(part) for part in (tmp_path / "ignorant", book_run)]
    labels = Labels("single_label_classification", ["0", "1"])
    for name, problem in (
        ("other", r"labels \['0', '1'\] \(multi_label_classification\), the data has .*\(single_label"),
        ("none", "teacher_name_or_path: cannot load the model .*none': there is no such directory"),
    ):
        with pytest.raises(InputError, match=problem):
            ask_teachers([str(tmp_path / name)], DatasetDict(splits), unlabeled, labels, tokenizer)
    taught = ask_teachers(names, DatasetDict(splits), unlabeled, labels, tokenizer)
    assert taught["text"] == unlabeled["text"]
    told = re.findall(r" (\S+) \(([\d.]+)\)", capsys.readouterr().out)
    weights = [float(weight) for weight, _ in told[:2]]
    odds = {}
    for name, dataset in (("validation", splits["validation"]), ("unlabeled", unlabeled)):
        rows = np.array(list(BulkClassifier(load_scorer(names[1]))(dataset["text"])))
        odds[name] = np.log(rows[:, 1] / rows[:, 0])
    # Found by trying: as many of the one's log-odds and as much of the other's 1 as the validation labels want.
    signs = 2 * np.array(splits["validation"]["label"]) - 1
    grid = [(shift, factor) for shift in np.linspace(0, 2, 41) for factor in np.linspace(0.1, 5, 50)]
    best = min(grid, key=lambda pair: np.logaddexp(0, -signs * (pair[0] + pair[1] * odds["validation"])).mean())
    np.testing.assert_allclose(weights, best, atol=0.1)
    loss = np.logaddexp(0, -signs * (best[0] + best[1] * odds["validation"])).mean()
    assert told[2][0] == "together" and float(told[2][1]) == pytest.approx(loss, abs=1e-3)
    answers = np.array(taught["label"])
    odds = weights[0] + weights[1] * odds["unlabeled"]
    np.testing.assert_allclose(answers[:, 1], 1 / (1 + np.exp(-odds)), atol=0.01)
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-6)
    quickly = ask_teachers(names, DatasetDict(splits), unlabeled, labels, tokenizer, bf16=True)
    np.testing.assert_allclose(np.array(quickly["label"]), answers, atol=0.01)


def test_document_vectors_teach_texts_without_labels_only(reviews, tmp_path):
    flags = [*SMALL, f"--train_file={reviews / 'train.csv'}", "--validation_size=0.1", "--teacher_name_or_path=doc2vec"]
    assert "needs texts without labels" in fails(*flags, f"--output_dir={tmp_path / 'refused'}")
    texts = [f"--train_file={reviews / 'train.csv'}", "--teacher_name_or_path=doc2vec", *SMALL]
    line = fails("configuration/pretrain.yaml", *texts, f"--output_dir={tmp_path / 'refused'}")
    assert "teacher" in line and "language-modeling" in line
    (tmp_path / "more.txt").write_text("\n".join(text or "film" for text in make_reviews(300, seed=9)["text"]))
    result = train(
        "configuration/default.yaml",
        *flags,
        f"--unlabeled_file={tmp_path / 'more.txt'}",
        "--num_train_epochs=1",
        f"--output_dir={tmp_path / 'student'}",
    )
    assert "doc2vec " in result.stdout and "300 unlabeled" in result.stdout
    assert "teacher_name_or_path:\n- doc2vec" in (tmp_path / "student" / "recipe.yaml").read_text()


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
def test_the_teacher_that_is_right_has_all_of_the_weight(problem_type, tmp_path, capsys):
    """Whatever the unit of values, here thousandths."""
    names = ["value"] if problem_type == "regression" else ["good", "long", "odd"]
    settings = {"problem_type": problem_type, "id2label": dict(enumerate(names)), "num_labels": len(names)}
    settings["label2id"] = {name: index for index, name in enumerate(names)}
    settings |= {"value_mean": 1e-3, "value_scale": 1e-3} if problem_type == "regression" else {}
    for name, pooling in (("right", "mean"), ("wrong", "last")):
        make_model(tmp_path / name, pooling=pooling, **settings)
    models, texts = [str(tmp_path / name) for name in ("wrong", "right")], make_texts(120)
    answers = np.array(list(BulkClassifier(load_scorer(models[1]))(texts)))
    answers = answers.ravel() if problem_type == "regression" else answers
    validation = Dataset.from_dict({"text": texts, "label": answers.tolist()})
    splits, unlabeled = DatasetDict(train=validation, validation=validation), Dataset.from_dict({"text": texts})
    labels = Labels("regression") if problem_type == "regression" else Labels(problem_type, names)
    taught = ask_teachers(models, splits, unlabeled, labels, TOKENIZER)
    weights = [float(weight) for weight in re.findall(r" ([\d.]+) \([\d.]+\), ", capsys.readouterr().out)]
    assert weights == pytest.approx([0, 1], abs=0.02)
    np.testing.assert_allclose(np.ravel(taught["label"][:]), answers.ravel(), rtol=0.01, atol=1e-5)
