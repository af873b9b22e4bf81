"""Anything for a text, a batch, a mask or a config: a right answer, or an error that names the cause."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import make_reviews, run
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bulk import TOKENIZER, make_model
from transformers import TextClassificationPipeline

from modeling_rnnsent import RNNSentConfig, RNNSentForSequenceClassification
from modeling_rnnsent.bulk import BulkClassifier
from modeling_rnnsent.errors import InputError
from modeling_rnnsent.scoring import TorchScorer

STRANGE = [
    "",
    " \t\n\u00a0\u2003",
    "\x00\x01\x1b[31mgood\x7f",
    "\u202egood\u202c שלום سلام",
    "👨‍👩‍👧 good 👍🏽 :) e\u0301",
    "<br /><pad> <unk> good",
    "good" * 2000,
    "\ufeffgood\u200b\u2028bad",
]
TEXTS = st.one_of(
    st.sampled_from(STRANGE), st.text(max_size=60), st.lists(st.sampled_from(["good", "bad", "film"])).map(" ".join)
)
# What an error may be, where something is wrong.
EXPECTED = (ValueError, OSError, StrictDataclassError)


@pytest.fixture(scope="module", params=["last", "max_mean"])
def classify(request, tmp_path_factory):
    ngrams = {"ngram_order": 2, "ngram_buckets": 64, "bidirectional": True} if request.param == "max_mean" else {}
    model = make_model(tmp_path_factory.mktemp("model"), pooling=request.param, **ngrams)
    if ngrams:
        torch.nn.init.normal_(model.ngrams.scores)
    return TextClassificationPipeline(model=model, tokenizer=TOKENIZER, top_k=None)


def scores(answers) -> list[float]:
    return [answer["score"] for answer in sorted(answers, key=lambda answer: answer["label"])]


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=6))
def test_any_text_gets_the_same_answer_alone_and_among_others(classify, texts):
    alone = np.array([scores(classify(text)[0]) for text in texts])
    assert np.isfinite(alone).all() and np.allclose(alone.sum(axis=1), 1, atol=1e-5)
    assert np.abs(np.array([scores(row) for row in classify(texts, batch_size=len(texts))]) - alone).max() < 1e-5
    bulk = BulkClassifier(TorchScorer(classify.model, classify.tokenizer), num_threads=1)
    assert np.abs(np.array(list(bulk(texts))) - alone).max() < 1e-5


@pytest.mark.parametrize("text", ["a \ud800 film", "\udfff"])
def test_half_a_character_is_refused_as_by_the_stock_pipeline_or_named(classify, text):
    with pytest.raises(TypeError, match="TextEncodeInput"):
        classify(text)
    with pytest.raises(InputError, match="row 2 is no valid Unicode"):
        list(BulkClassifier(TorchScorer(classify.model, classify.tokenizer))(["good", text]))


@pytest.mark.parametrize("text", ["x" * 1_000_000, "good bad " * 500_000], ids=["no space", "a million words"])
def test_a_huge_text_has_an_answer(classify, text):
    (answers,) = classify(text)
    assert np.isfinite(scores(answers)).all()
    bulk = BulkClassifier(TorchScorer(classify.model, classify.tokenizer), num_threads=1)
    assert np.abs(next(iter(bulk([text]))) - scores(answers)).max() < 1e-4


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_batch_and_mask(classify, data):
    """Ids in and out of range, masks of any kind and pattern: the logits of each text's own tokens, or an error."""
    model = classify.model
    rows, columns = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 6))
    ids = torch.tensor(data.draw(st.lists(st.integers(-2, len(TOKENIZER) + 1), min_size=24, max_size=24)))
    ids = ids[: rows * columns].view(rows, columns)
    kind = data.draw(st.sampled_from([torch.int64, torch.bool, torch.float32, torch.uint8]))
    mask = torch.tensor(data.draw(st.lists(st.integers(0, 1), min_size=24, max_size=24)))[: rows * columns]
    mask = mask.view(rows, columns).to(kind)
    if data.draw(st.booleans()) and columns > 1:
        mask = mask[:, 1:]
    try:
        with torch.no_grad():
            logits = model(ids, attention_mask=mask).logits
    except EXPECTED as error:
        valid = ids.numel() == 0 or (ids.min() >= 0 and ids.max() < model.config.vocab_size)
        assert "input_ids" in str(error) or "attention_mask" in str(error)
        assert not valid or mask.shape != ids.shape
        return
    assert logits.shape == (rows, 2) and torch.isfinite(logits).all()
    for row in range(rows):
        own = ids[row][mask[row].bool()].unsqueeze(0)
        with torch.no_grad():
            torch.testing.assert_close(model(own).logits[0], logits[row], rtol=1e-5, atol=1e-5)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 5),
    st.floats(),
    st.sampled_from(
        ["lstm", "gru", "rnn", "max", "mean", "last", "sigmoid", "softmax", "concat", "sum", "output", "?"]
    ),
    st.lists(st.integers(), max_size=2),
)
FIELDS = sorted(name for name in RNNSentConfig.__annotations__ if name not in ("model_type", "vocab_size"))


@settings(max_examples=300, deadline=None)
@given(fields=st.dictionaries(st.sampled_from([*FIELDS, "num_labels", "id2label", "problem_type"]), VALUES, max_size=4))
def test_any_config_is_a_model_or_refused(fields):
    sizes = {"vocab_size": 20, "embedding_size": 4, "hidden_size": 4}
    try:
        config = RNNSentConfig.from_dict({**sizes, **fields})
        model = RNNSentForSequenceClassification(config).eval()
    except EXPECTED as error:
        # A strict config names the field; what excludes each other names one of those given or its partner.
        cause = str(error.__cause__ or error)
        assert any(name in cause for name in (*fields, *FIELDS, "num_labels", "id2label", "problem_type")), cause
        return
    with torch.no_grad():
        logits = model(torch.tensor([[2, 3, 4], [5, 0, 0]]), attention_mask=torch.tensor([[1, 1, 1], [1, 0, 0]])).logits
    assert logits.shape == (2, model.num_labels) and torch.isfinite(logits).all()


def test_command_line_names_a_text_that_is_no_unicode(book_run):
    result = run("rnnsent", "predict", book_run, "good", b"a \xff b".decode("utf-8", "surrogateescape"), check=False)
    assert result.returncode == 1 and "error: text 2 is no valid Unicode" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("target", ["text", "config"])
def test_guided_by_coverage_nothing_is_found(target, tmp_path):
    pytest.importorskip("atheris")
    seconds = os.environ.get("FUZZ_SECONDS", "20")
    command = [sys.executable, Path(__file__).with_name("fuzz.py"), target, f"-max_total_time={seconds}"]
    result = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
def test_memory_is_flat_over_many_calls(book_run):
    """As many calls of the pipeline as SOAK_CALLS says, each with texts of other lengths."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(book_run))
    texts = [" ".join(make_reviews(1, seed)["text"]) * (1 + seed % 7) for seed in range(200)]
    calls, process, sizes = int(os.environ.get("SOAK_CALLS", 2000)), psutil.Process(), []
    for call in range(calls):
        first = call % len(texts)
        classify(texts[first : first + 1 + call % 3])
        if call % (calls // 20) == 0:
            sizes.append(process.memory_info().rss / 2**20)
    print("MiB:", [round(size) for size in sizes])
    # From a tenth of the calls on: allocators take their time to have what they want.
    assert max(sizes[10:]) - max(sizes[2:10]) < 5 and math.isfinite(sizes[-1])
