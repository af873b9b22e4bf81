"""The n-gram model beside the recurrent layers: its formula, its state, how it is fitted, and that it is worth it."""

import math
import re
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from conftest import make_reviews
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from test_models import make, make_batch
from torch import nn

from modeling_rnnsent import RNNSentForSequenceClassification
from modeling_rnnsent.encoding import WordEncoder
from modeling_rnnsent.ngrams import choose_buckets, choose_weight, fit_ngrams
from modeling_rnnsent.tokenization import build_tokenizer

PRIME, BASE, SPREAD = 2**31 - 1, 1_103_515_245, 1_664_525_001


def bucket(ngram, num_buckets):
    """The row of one n-gram, in Python's integers."""
    value = 0
    for token in reversed(ngram):
        value = (value * BASE + token + 2) % PRIME
    return (value * SPREAD + len(ngram)) % PRIME % num_buckets


def reference(model, ids):
    """Logits of one text, a loop written out."""
    ngrams, order = model.ngrams, model.config.ngram_order
    found = [ids[i : i + n] for n in range(1, order + 1) for i in range(len(ids) - n + 1)]
    found = [bucket(ngram, model.config.ngram_buckets) for ngram in found]
    found = set(found) if model.config.ngram_presence else found  # each row once, however often it is met
    total = sum(ngrams.scores[row] for row in found)
    logits = ngrams.bias + total / math.sqrt(max(1, len(found)))
    return torch.cat((torch.zeros(1), logits)) if model.config.num_labels == 2 else logits


def make_with_ngrams(order=3, **settings):
    settings = {"ngram_order": order, "ngram_buckets": 64, "ngram_weight": 1.0, **settings}
    model = make(RNNSentForSequenceClassification, **settings)
    generator = torch.Generator().manual_seed(3)
    for buffer in model.ngrams.buffers():
        buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return model


@pytest.mark.parametrize("num_labels", [2, 3])
@pytest.mark.parametrize(("order", "presence"), [(1, True), (2, True), (4, True), (3, False)])
def test_logits_by_the_formula(order, presence, num_labels):
    model = make_with_ngrams(order, num_labels=num_labels, ngram_presence=presence)
    lengths = [7, 1, 0, 4]
    batch = make_batch(lengths)
    logits = model(**batch).logits
    for row, length in enumerate(lengths):
        expected = reference(model, batch["input_ids"][row, :length].tolist())
        torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=1e-5)
    left = make_batch(lengths, side="left")
    torch.testing.assert_close(model(**left).logits, logits)


def test_logits_are_the_weighted_mean_in_evaluation_and_the_recurrent_ones_in_training():
    model = make_with_ngrams()
    batch = {**make_batch([6, 3]), "labels": torch.tensor([0, 1])}
    ngram_logits = model(**batch).logits
    model.config.ngram_weight = 0.0
    recurrent = model(**batch).logits
    model.config.ngram_weight = 0.3
    torch.testing.assert_close(model(**batch).logits, 0.7 * recurrent + 0.3 * ngram_logits)
    model.train()
    output = model(**batch)
    torch.testing.assert_close(output.logits, recurrent)
    model.eval()
    with pytest.raises(ValueError, match="give `input_ids`"):
        model(inputs_embeds=torch.zeros(1, 2, model.config.embedding_size))


@pytest.mark.parametrize(("pooling", "presence"), [("last", True), ("max_mean", True), ("mean", False)])
def test_text_read_in_pieces_gives_the_same(pooling, presence):
    model = make_with_ngrams(ngram_weight=0.5, pooling=pooling, ngram_presence=presence)
    lengths = [9, 2, 0, 5]
    batch = make_batch(lengths)
    batch["input_ids"][0, 5:] = batch["input_ids"][0, :4]  # what was met in an earlier piece
    expected = model(**batch).logits
    state = None
    for start, end in ((0, 1), (1, 3), (3, 8), (8, 9)):
        piece = {name: value[:, start:end] for name, value in batch.items()}
        output = model(**piece, state=state, use_cache=True)
        state = output.state
    torch.testing.assert_close(output.logits, expected)
    for wrong in (state[:-1], (*state[:-1], state[-1][:2]), (state[0][:, :2], *state[1:])):
        right, given = ([tuple(part.shape) for part in parts] for parts in (state, wrong))
        with pytest.raises(ValueError, match=re.escape(f"{right}, got shapes {given}")):
            model(**batch, state=wrong)


def encoded_reviews(count=300, seed=0):
    frame = make_reviews(count, seed)
    encode = WordEncoder(build_tokenizer(make_reviews(300)["text"]))
    return encode(list(frame["text"])), frame["label"].to_numpy()


def test_fitting_starts_from_naive_bayes_and_ends_as_good_as_logistic_regression():
    (rows, labels), (other_rows, other_labels) = encoded_reviews(), encoded_reviews(200, seed=1)
    buckets = choose_buckets(rows, 2, 1)
    model = make(RNNSentForSequenceClassification, vocab_size=100, ngram_order=2, ngram_buckets=buckets)
    history = fit_ngrams(model, rows, labels, other_rows, other_labels, seed=0)
    assert all(min(losses) < losses[0] for losses in history.values())
    model.config.ngram_weight = 1.0
    guesses = [int(model(torch.from_numpy(row)[None]).logits.argmax()) if len(row) else 0 for row in other_rows]
    vectorizer = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\S+")
    texts, other_texts = ([" ".join(map(str, row)) for row in part] for part in (rows, other_rows))
    rival = LogisticRegression().fit(vectorizer.fit_transform(texts), labels)
    assert np.mean(guesses == other_labels) >= rival.score(vectorizer.transform(other_texts), other_labels) - 0.01
    again = make(RNNSentForSequenceClassification, vocab_size=100, ngram_order=2, ngram_buckets=buckets)
    assert fit_ngrams(again, rows, labels, other_rows, other_labels, seed=0) == history
    assert torch.equal(again.ngrams.scores, model.ngrams.scores)


def test_of_few_texts_shorter_ngrams_and_a_penalty_are_tried_and_the_best_table_is_kept(monkeypatch):
    (rows, labels), (other_rows, other_labels) = encoded_reviews(80), encoded_reviews(200, seed=1)
    model = make(RNNSentForSequenceClassification, vocab_size=100, ngram_order=2, ngram_buckets=4096, ngram_weight=1.0)
    history = fit_ngrams(model, rows, labels, other_rows, other_labels)
    tried = {(presence, order, smoothing is None) for presence, order, smoothing in history}
    assert tried == set(product((True, False), (1, 2), (False, True)))
    logits = torch.cat([model(torch.from_numpy(row).view(1, -1)).logits for row in other_rows])
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(other_labels)).item()
    best = {way: min(min(losses) for key, losses in history.items() if key[0] == way) for way in (True, False)}
    chosen = best[True] < 0.97 * best[False]
    assert model.config.ngram_presence == chosen and loss == pytest.approx(best[chosen], rel=1e-4)
    monkeypatch.setattr("modeling_rnnsent.ngrams.MOST_TOKENS", 0)
    assert all(smoothing for *_, smoothing in fit_ngrams(model, rows, labels, other_rows, other_labels))
    monkeypatch.setattr("modeling_rnnsent.ngrams.MOST_TRIED", 0)
    assert list(fit_ngrams(model, rows, labels, other_rows, other_labels)) == [(False, 2, 2.0)]
    monkeypatch.undo()
    monkeypatch.setattr("modeling_rnnsent.ngrams.FEW_TOKENS", sum(map(len, rows)) // 2)  # of either class
    history = fit_ngrams(model, rows, labels, other_rows, other_labels)
    chosen = model.config.ngram_presence
    assert set(history) == {(True, 2, 20.0), (False, 2, 20.0), (chosen, 2, 2.0)}
    # Given what was chosen, the same is found.
    scores = model.ngrams.scores.clone()
    again = fit_ngrams(model, rows, labels, other_rows, other_labels, presence=chosen)
    assert again == {key: losses for key, losses in history.items() if key[0] == chosen}
    assert torch.equal(model.ngrams.scores, scores)


def test_longer_ngrams_are_tried_until_they_are_no_better():
    (rows, labels), (other_rows, other_labels) = encoded_reviews(200), encoded_reviews(200, seed=1)
    model = make(RNNSentForSequenceClassification, vocab_size=100, ngram_order=6, ngram_buckets=1 << 16)
    history = fit_ngrams(model, rows, labels, other_rows, other_labels)
    for presence, smoothing in product((True, False), (20.0, 2.0, None)):
        tried = [(presence, order, smoothing) for order in range(1, 7)]
        losses = [min(history[key]) for key in tried if key in history]
        assert len(losses) < 6 and losses[:-1] == sorted(losses[:-1], reverse=True) and losses[-1] >= losses[-2]


@pytest.mark.parametrize(("num_labels", "presence"), [(2, True), (3, True), (3, False)])
def test_regression_with_a_penalty_is_logistic_regression_on_inverse_document_frequencies(
    num_labels, presence, monkeypatch
):
    penalty = 0.5
    monkeypatch.setattr("modeling_rnnsent.ngrams.PENALTIES", (penalty,))
    monkeypatch.setattr("modeling_rnnsent.ngrams.STEPS_PER_PENALTY", 1000)  # to the end, as scikit-learn's
    monkeypatch.setattr("modeling_rnnsent.ngrams.HISTORY", 100)
    monkeypatch.setattr("modeling_rnnsent.ngrams.SMOOTHINGS", ())
    rows, labels = encoded_reviews(120)
    labels = labels + (np.arange(120) % 5 == 0) * (num_labels - 2)
    settings = {"num_labels": num_labels, "problem_type": "single_label_classification"}
    model = make(RNNSentForSequenceClassification, vocab_size=100, ngram_order=1, ngram_buckets=1 << 16, **settings)
    fit_ngrams(model, rows, labels, rows, labels, presence=presence)
    counts = np.stack([np.bincount(row, minlength=100) for row in rows])
    inverse = np.log((1 + len(rows)) / (1 + (counts > 0).sum(axis=0))) + 1
    counts = counts > 0 if presence else counts
    features = counts * inverse / np.sqrt(np.maximum(counts.sum(axis=1, keepdims=True), 1))
    rival = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=10_000).fit(features, labels)
    scores = torch.stack([model.ngrams.scores[bucket([token], 1 << 16)] for token in range(100)], dim=1)
    torch.testing.assert_close(scores, torch.tensor(rival.coef_ * inverse).float(), atol=2e-3, rtol=1e-3)
    model.config.ngram_weight = 1.0
    logits = torch.cat([model(torch.from_numpy(row).view(1, -1)).logits for row in rows])
    expected = torch.tensor(rival.predict_proba(features)).float()
    torch.testing.assert_close(logits.softmax(dim=1), expected, atol=1e-3, rtol=1e-3)


def test_penalty_is_of_each_of_several_labels_as_of_one(monkeypatch):
    for name, value in (("PENALTIES", (0.5,)), ("STEPS_PER_PENALTY", 1000), ("HISTORY", 100), ("SMOOTHINGS", ())):
        monkeypatch.setattr(f"modeling_rnnsent.ngrams.{name}", value)
    rows, labels = encoded_reviews(120)
    several = np.stack((labels, np.arange(120) % 3 == 0, 1 - labels), axis=1).astype(np.float32)
    settings = {"vocab_size": 100, "ngram_order": 1, "ngram_buckets": 1 << 16}
    model = make(RNNSentForSequenceClassification, num_labels=3, problem_type="multi_label_classification", **settings)
    fit_ngrams(model, rows, several, rows, several, presence=True)
    kind = {"num_labels": 2, "problem_type": "single_label_classification"}
    for place in range(3):
        alone = make(RNNSentForSequenceClassification, **kind, **settings)
        fit_ngrams(alone, rows, several[:, place].astype(int), rows, several[:, place].astype(int), presence=True)
        torch.testing.assert_close(model.ngrams.scores[:, place], alone.ngrams.scores[:, 0], atol=2e-3, rtol=1e-3)


def test_the_order_of_equal_values_is_no_matter(monkeypatch):
    monkeypatch.setattr("modeling_rnnsent.ngrams.MOST_EPOCHS", 0)
    monkeypatch.setattr("modeling_rnnsent.ngrams.SMOOTHINGS", (2.0,))
    monkeypatch.setattr("modeling_rnnsent.ngrams.FEW_TOKENS", 0)
    rows = [np.array([3]) for _ in range(8)] + [np.array([4]) for _ in range(24)]
    values = np.array([1.0, 5.0] * 16)  # as many of both with either word, in the first and in the last texts
    model = make(
        RNNSentForSequenceClassification, ngram_order=1, ngram_buckets=1 << 16, num_labels=1, problem_type="regression"
    )
    fit_ngrams(model, rows, values, rows, values, presence=True)
    for token in (3, 4):
        assert abs(float(model.ngrams.scores[bucket([token], 1 << 16)])) < 1e-5


def test_table_has_room_for_every_ngram():
    rows = [np.arange(start, start + 100) for start in range(0, 10_000, 100)]
    assert choose_buckets(rows, 1, 1) == 1 << 18  # at least sixteen times 10,000
    assert choose_buckets(rows[:1], 1, 1) == 4096
    assert choose_buckets(rows, 1, 40) == 1 << 16  # at least four times 10,000: more than 4 million scores as it is
    assert choose_buckets(rows, 1, 1000) == 1 << 15  # many labels


def test_topics_are_counted_and_opinions_are_not():
    """Texts of two topics name theirs more often; of opinions there are three to one, whichever is said many times."""
    generator, topics, opinions = np.random.default_rng(0), [], []
    labels = np.arange(400) % 2
    for label in labels:
        counts = generator.permutation(10)
        topics.append(np.repeat([2 + label, 3 - label], [10 + counts[0], 2 + counts[1]]))
        own, other = (
            generator.choice(np.arange(30 + side * 20, 50 + side * 20), 3, False) for side in (label, 1 - label)
        )
        opinions.append(np.repeat([*own, other[0]], generator.permutation([8, 1, 1, 1])))
    for rows, presence in ((topics, False), (opinions, True)):
        rows = [generator.permutation(np.concatenate((row, np.arange(10, 30)))) for row in rows]
        model = make(RNNSentForSequenceClassification, vocab_size=100, ngram_order=1, ngram_buckets=1 << 16)
        history = fit_ngrams(model, rows[:200], labels[:200], rows[200:], labels[200:])
        assert model.config.ngram_presence == presence
        losses = {kind: min(min(part) for key, part in history.items() if key[0] == kind) for kind in (True, False)}
        assert losses[presence] < losses[not presence]
        model.config.ngram_weight = 1.0
        logits = torch.cat([model(torch.from_numpy(row)[None]).logits for row in rows[200:]])
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels[200:])).item()
        assert loss == pytest.approx(losses[presence], rel=1e-4)


@pytest.mark.parametrize("presence", [True, False])
def test_first_scores_are_log_count_ratios(presence, monkeypatch):
    monkeypatch.setattr("modeling_rnnsent.ngrams.MOST_EPOCHS", 0)
    monkeypatch.setattr("modeling_rnnsent.ngrams.SMOOTHINGS", (2.0,))
    monkeypatch.setattr("modeling_rnnsent.ngrams.FEW_TOKENS", 0)
    rows = [np.array([3, 4, 3]), np.array([3]), np.array([5])]
    labels = np.array([1, 1, 0])
    model = make(RNNSentForSequenceClassification, ngram_order=1, ngram_buckets=1 << 16)
    fit_ngrams(model, rows, labels, rows, labels, presence=presence)
    once = set if presence else list
    counts = {
        label: Counter(t for row, its in zip(rows, labels) if its == label for t in once(row.tolist()))
        for label in (0, 1)
    }
    share = 3 / 4 if presence else 4 / 5  # of all (different) words of each text, how many are of texts of class 1
    for token in (3, 4, 5, 9):
        ratio = math.log((counts[1][token] / share + 2) / (counts[0][token] / (1 - share) + 2))
        score = model.ngrams.scores[bucket([token], 1 << 16)]
        torch.testing.assert_close(score, torch.tensor([0.5 * ratio]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.ngrams.bias, torch.tensor([math.log(2)]))


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression", "three classes"])
def test_other_kinds_of_labels_are_fitted(problem_type):
    (rows, labels), (other_rows, other_labels) = encoded_reviews(), encoded_reviews(200, seed=1)
    settings = {"problem_type": problem_type, "num_labels": {"regression": 1}.get(problem_type, 3)}
    if problem_type == "multi_label_classification":
        convert = lambda part: np.stack((part, 1 - part, np.ones_like(part)), axis=1).astype(np.float32)  # noqa: E731
    elif problem_type == "regression":
        convert = lambda part: part * 20.0 + 100  # noqa: E731
    else:
        settings["problem_type"] = "single_label_classification"
        convert = lambda part: part * 2  # of the middle class there is no text  # noqa: E731
    model = make(RNNSentForSequenceClassification, vocab_size=100, ngram_order=2, ngram_buckets=4096, **settings)
    history = fit_ngrams(model, rows, convert(labels), other_rows, convert(other_labels))
    assert all(min(losses) < losses[0] for losses in history.values())
    model.config.ngram_weight = 1.0
    logits = torch.cat([model(torch.from_numpy(row)[None]).logits for row in other_rows if len(row)]).detach()
    truth = other_labels[[len(row) > 0 for row in other_rows]]
    if problem_type == "regression":
        assert 100 < float(logits.mean()) < 120 and np.corrcoef(logits[:, 0], truth)[0, 1] > 0.8
    else:
        first = logits[:, 0] > 0 if problem_type == "multi_label_classification" else logits.argmax(1) == 2
        assert np.mean(first.numpy() == truth) > 0.9


@pytest.mark.parametrize("problem_type", ["two classes", "three classes", "multi_label_classification", "regression"])
def test_a_teacher_that_is_right_is_as_good_as_labels(problem_type):
    (rows, labels), (other_rows, other_labels) = encoded_reviews(), encoded_reviews(200, seed=1)
    count = {"three classes": 3, "regression": 1}.get(problem_type, 2)
    settings = {"problem_type": "single_label_classification" if "classes" in problem_type else problem_type}
    if problem_type == "three classes":
        labels = labels + labels * (np.arange(300) % 3 == 0)
    elif problem_type == "multi_label_classification":
        labels, other_labels = (np.eye(2, dtype=np.float32)[part] for part in (labels, other_labels))
    elif problem_type == "regression":
        labels, other_labels = labels * 20.0 + 100, other_labels * 20.0 + 100
    answers = np.eye(count)[labels] if "classes" in problem_type else labels.reshape(300, -1)
    models = [
        make(RNNSentForSequenceClassification, vocab_size=100, ngram_order=2, num_labels=count, **settings)
        for _ in range(3)
    ]
    expected = fit_ngrams(models[0], rows, labels, other_rows, other_labels)
    taught = {"taught_rows": rows[100:], "answers": answers[100:]}
    history = fit_ngrams(models[1], rows[:100], labels[:100], other_rows, other_labels, **taught)
    assert history.keys() == expected.keys()
    for name, losses in expected.items():
        np.testing.assert_allclose(history[name], losses, rtol=1e-2)
    gap = (models[1].ngrams.scores - models[0].ngrams.scores).abs().max()
    assert gap < 0.05 * models[0].ngrams.scores.abs().max()
    # One who knows nothing but the mean is of no use.
    taught["answers"] = np.broadcast_to(answers.mean(axis=0), answers[100:].shape)
    history = fit_ngrams(models[2], rows[:100], labels[:100], other_rows, other_labels, **taught)
    assert min(map(min, history.values())) > min(map(min, expected.values()))


def test_weight_is_the_one_with_the_lowest_loss():
    labels = np.array([0, 1, 1, 0])
    right = np.array([[2.0, -2.0], [-2.0, 2.0], [-2.0, 2.0], [2.0, -2.0]])
    for recurrent, ngrams in ((right, -right), (-right, right)):
        assert choose_weight(recurrent, ngrams, labels, "single_label_classification") == float(ngrams is right)
    noisy = right + np.array([[4.0, 0.0], [0.0, 0.0], [4.0, 0.0], [0.0, 0.0]])
    losses = [
        nn.functional.cross_entropy(torch.tensor((1 - w) * right * 0.1 + w * noisy), torch.tensor(labels)).item()
        for w in np.arange(21) / 20
    ]
    assert choose_weight(right * 0.1, noisy, labels, "single_label_classification") == np.argmin(losses) / 20


@pytest.fixture
def one_table(monkeypatch):
    """A function that fits one table, of one smoothing, to three classes of texts, long and short."""
    monkeypatch.setattr("modeling_rnnsent.ngrams.SMOOTHINGS", (2.0,))
    monkeypatch.setattr("modeling_rnnsent.ngrams.FEW_TOKENS", 0)
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 3, 70)
    rows = [generator.integers(2, 40, 1 + 20 * (index % 5)) // (1 + label) for index, label in enumerate(labels)]

    def fit(epochs: int = 3):
        monkeypatch.setattr("modeling_rnnsent.ngrams.MOST_EPOCHS", epochs)
        kind = {"num_labels": 3, "problem_type": "single_label_classification"}
        model = make(RNNSentForSequenceClassification, ngram_order=2, ngram_buckets=1 << 12, **kind)
        fit_ngrams(model, rows, labels, rows, labels, seed=5, presence=False)
        return model.ngrams.scores.clone(), model.ngrams.bias.clone()

    return fit, rows, labels


@pytest.mark.parametrize("limit", ["ngrams.MOST_SCORES", "ngram_texts.MOST_KEPT"])
def test_what_there_is_no_room_for_at_once_is_learned_the_same(limit, one_table, monkeypatch):
    fit, *_ = one_table
    expected = fit()
    monkeypatch.setattr(f"modeling_rnnsent.{limit}", 1)
    torch.testing.assert_close(fit(), expected, rtol=1e-4, atol=1e-5)


def test_weights_of_ratios_are_those_of_sparse_adam(one_table):
    fit, rows, labels = one_table
    scores, bias = fit(0)
    ratios, bias = scores / 0.5, bias.requires_grad_()
    weights = torch.full_like(ratios, 0.5, requires_grad=True)
    optimizers = (torch.optim.SparseAdam([weights], lr=0.05), torch.optim.Adam([bias], lr=0.05))
    order = np.random.default_rng(5).permutation(len(rows))
    for start in range(0, len(rows), 32):
        logits = []
        for index in order[start : start + 32]:
            ids = rows[index].tolist()
            found = [
                bucket(ids[end - size : end], 1 << 12)
                for end in range(1, len(ids) + 1)
                for size in (1, 2)
                if end >= size
            ]
            found = torch.tensor(found)
            scores = torch.nn.functional.embedding(found, weights, sparse=True) * ratios[found]
            logits.append(bias + scores.sum(dim=0) / len(found) ** 0.5)
        targets = torch.from_numpy(labels[order[start : start + 32]])
        torch.nn.functional.cross_entropy(torch.stack(logits), targets).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(fit(1), ((weights * ratios).detach(), bias.detach()), rtol=1e-4, atol=1e-5)
