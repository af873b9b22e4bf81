"""Texts read as they arrive, against the same texts read at once by the stock pipeline."""

import copy
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bulk import TOKENIZER, make_model
from transformers import TextClassificationPipeline

from modeling_rnnsent import streaming
from modeling_rnnsent.errors import InputError
from modeling_rnnsent.streaming import StreamingClassifier
from modeling_rnnsent.tokenization import build_tokenizer

CELLS = [
    {"cell_type": "lstm", "pooling": "last"},
    {"cell_type": "gru", "pooling": "max_mean", "num_hidden_layers": 2},
    {"cell_type": "rnn", "pooling": "attention", "ngram_order": 3, "ngram_buckets": 64, "ngram_presence": False},
    {"problem_type": "multi_label_classification", "pooling": "mean"},
    {"problem_type": "regression", "num_labels": 1, "id2label": {0: "value"}, "label2id": {"value": 0}},
]
PIECES = ["good ", "bad", " film", " <br />", "<a b", "ad c>", ":", "-)", "it's", "\n", "<", ">", "!", "Σ", "é "]
PIECES += ["e", "\u0301", "火", "カ", "\u3099", "ดี", ":p", "\u2b50", "❤", "\ufe0f"]


@pytest.fixture(scope="module", params=CELLS, ids=lambda cell: "-".join(map(str, cell.values())))
def classify(request, tmp_path_factory):
    model = make_model(tmp_path_factory.mktemp("model"), **request.param)
    if model.ngrams is not None:
        model.ngrams.scores.normal_()
    return TextClassificationPipeline(model=model, tokenizer=TOKENIZER, top_k=None)


def expected(classify, text):
    answers = classify([text])[0]
    if classify.model.config.problem_type == "multi_label_classification":
        return {"labels": pytest.approx({answer["label"]: answer["score"] for answer in answers}, abs=1e-5)}
    return {"label": answers[0]["label"], "score": pytest.approx(answers[0]["score"], abs=1e-5)}


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12))
def test_a_text_in_any_pieces_gives_what_it_gives_whole(classify, pieces):
    pieces = [piece.encode("utf-8", "ignore").decode() for piece in pieces]
    streams = StreamingClassifier(classify.model, TOKENIZER)
    streams.feed({"a": ""})
    for piece in pieces:
        streams.feed({"a": piece})
    assert streams.finish("a") == expected(classify, "".join(pieces))
    assert streams.streams == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_half_precision_counts_the_words_of_long_texts(tmp_path, dtype, pooling):
    model = make_model(tmp_path, pooling=pooling).to(dtype)
    classify = TextClassificationPipeline(model=model, tokenizer=TOKENIZER)
    streams, text = StreamingClassifier(model, TOKENIZER), "good film " * 300 + "bad film " * 1200
    for start in range(0, len(text), 10):  # a word or two
        streams.feed({"a": text[start : start + 10]})
    whole = classify(text)[0]
    assert streams.finish("a") == {"label": whole["label"], "score": pytest.approx(whole["score"], abs=0.01)}


def test_many_streams_beside_each_other_and_saved_between(classify, tmp_path):
    generator = random.Random(0)
    words = ["good ", "bad ", "dull ", "film ", "<br />", ":-) ", "great"]
    texts = {f"text {index}": "".join(generator.choices(words, k=index * 3)) for index in range(7)}
    streams, rest = StreamingClassifier(classify.model, TOKENIZER), dict(texts)
    while any(rest.values()):
        pieces = {}
        for name in generator.sample(sorted(rest), 4):
            length = generator.randint(0, 9)
            pieces[name], rest[name] = rest[name][:length], rest[name][length:]
        assert set(streams.feed(pieces)) == set(pieces)
        streams.save(str(tmp_path / "streams.safetensors"))
        streams = StreamingClassifier(classify.model, TOKENIZER)  # as after a restart
        streams.load(str(tmp_path / "streams.safetensors"))
    for name, text in texts.items():
        answer = streams.finish(name) if name in streams.streams else expected(classify, "")
        assert answer == expected(classify, text)


def test_a_long_piece_beside_short_ones_and_a_saved_model(tmp_path, monkeypatch):
    model = make_model(tmp_path / "model", pooling="max_mean", ngram_order=3, ngram_buckets=64, ngram_weight=0.5)
    TOKENIZER.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(streaming, "PIECE_TOKENS", 20)
    monkeypatch.setattr(streaming, "_LEAST_PIECE", 3)
    classify = TextClassificationPipeline(model=model, tokenizer=TOKENIZER, top_k=None)
    streams = StreamingClassifier.from_pretrained(str(tmp_path / "model"))
    texts = {"long": "good bad film dull great " * 50, "short": "dull film ", "none": ""}
    answers = streams.feed(texts)
    assert answers == {name: expected(classify, text) for name, text in texts.items()}


def test_the_answer_is_always_that_to_the_words_so_far(classify):
    streams = StreamingClassifier(classify.model, TOKENIZER)
    assert streams.feed({"a": ""})["a"] == expected(classify, "")
    assert streams.feed({"a": "a good fi"})["a"] == expected(classify, "a good")
    assert streams.feed({"a": "lm <br"})["a"] == expected(classify, "a good film")
    assert streams.feed({"a": " /> great"})["a"] == expected(classify, "a good film")
    assert streams.finish("a") == expected(classify, "a good film great")


def test_texts_without_spaces_are_answered_and_forgotten_as_they_come(tmp_path):
    tokenizer = build_tokenizer(["很好看", "不好看"])
    model = make_model(tmp_path)
    streams = StreamingClassifier(model, tokenizer)
    classify = TextClassificationPipeline(model=model, tokenizer=tokenizer, top_k=None)
    assert streams.feed({"a": "很好看不好"})["a"] == expected(classify, "很好看不")
    streams.feed({"a": "看" * 1000})
    streams.save(str(tmp_path / "streams"))
    assert (tmp_path / "streams").read_bytes().count("看".encode("unicode_escape")) == 1


def test_a_bad_piece_changes_nothing_and_loading_beats_what_was_read(classify, tmp_path):
    streams = StreamingClassifier(classify.model, TOKENIZER)
    streams.feed({"a": "good bad "})
    streams.save(str(tmp_path / "s.safetensors"))
    with pytest.raises(InputError, match="the piece of 'b' is no valid Unicode"):
        streams.feed({"a": "dull ", "b": "x\ud800 "})
    assert streams.streams == ["a"] and streams.feed({"a": ""})["a"] == expected(classify, "good bad")
    streams.feed({"a": "dull dull film "})
    streams.load(str(tmp_path / "s.safetensors"))
    assert streams.feed({"a": ""})["a"] == expected(classify, "good bad")


def test_what_cannot_be_streamed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="bidirectional=False.*backward direction starts at a text's end"):
        StreamingClassifier(make_model(tmp_path, bidirectional=True), TOKENIZER)
    streams = StreamingClassifier(make_model(tmp_path), TOKENIZER)
    with pytest.raises(ValueError, match="there is no stream 'b'"):
        streams.finish("b")
    with pytest.raises(ValueError, match="got 'a': None"):
        streams.feed({"a": None})
    with pytest.raises(ValueError, match="by the text's name.*got 'good'"):
        streams.feed("good")
    streams.feed({"a": "good "})
    with pytest.raises(InputError, match="cannot write the streams '/nowhere/s'"):
        streams.save("/nowhere/s")
    streams.save(str(tmp_path / "s.safetensors"))
    other = StreamingClassifier(make_model(tmp_path, cell_type="gru"), TOKENIZER)
    with pytest.raises(InputError, match="written with another model"):
        other.load(str(tmp_path / "s.safetensors"))
    (tmp_path / "broken").write_bytes(b"none")
    with pytest.raises(InputError, match="cannot load the streams"):
        streams.load(str(tmp_path / "broken"))
    with pytest.raises(InputError, match="cannot load the streams 'runs/none': there is no such file"):
        streams.load("runs/none")
    (tmp_path / "directory").mkdir()
    with pytest.raises(InputError, match="cannot write the streams"):
        streams.save(str(tmp_path / "directory"))
    assert not list(tmp_path.glob("directory.*")) and not list(tmp_path.glob("s.safetensors.*"))


def test_streams_of_a_model_that_differs_in_anything_are_refused(tmp_path):
    settings = {"ngram_order": 2, "ngram_buckets": 64, "pooling": "max"}
    model = make_model(tmp_path, **settings)
    streams = StreamingClassifier(model, TOKENIZER)
    streams.feed({"a": "good bad "})
    streams.save(str(tmp_path / "s.safetensors"))
    names = []
    for name in ("same", "scores", "temperature", "weight"):
        other = copy.deepcopy(model)
        if name == "scores":
            other.ngrams.scores[3] += 1
        elif name == "temperature":
            other.config.temperature = 2.0
        elif name == "weight":  # in a way that no sum tells
            other.classifier.out_proj.weight.data = other.classifier.out_proj.weight.data.flip(1)
        loading = StreamingClassifier(other, TOKENIZER)
        try:
            loading.load(str(tmp_path / "s.safetensors"))
            names.append(name)
        except InputError:
            assert loading.streams == []
    assert names == ["same"]
