"""The tokenizer: the chapter's rules, checked against them written in Python, on any text."""

import re
import string
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from modeling_rnnsent.errors import InputError
from modeling_rnnsent.tokenization import build_tokenizer

TEXTS = ["the film :) the the plot", "the plot :( film", "a b <br /> film"]
PLAIN, MARKED = (build_tokenizer(TEXTS, keep_punctuation=keep) for keep in (False, True))


def expected_tokens(text: str, marks: str = "") -> list[str]:
    """The rules in Python's own regular expressions, for ASCII texts."""
    text = re.sub(r"<[/!]?[A-Za-z][^<>]*>", " ", text).lower()
    tokens = re.findall(rf"[:;=]-?[()]|[:;=]-?[dp]\b|\w+{marks}", text)
    return [re.sub(r"(?<=[:;=])-", "", token) for token in tokens]


def words(tokenizer, text):
    normalized = tokenizer.backend_tokenizer.normalizer.normalize_str(text)
    return [word for word, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(normalized)]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("I LOVED it!", ["i", "loved", "it"]),
        ("Good<br /><br />film", ["good", "film"]),
        ("so :-) good ;-( or =( or :)", ["so", ":)", "good", ";(", "or", "=(", "or", ":)"]),
        ("fun :D :-P but a:del", ["fun", ":d", ":p", "but", "a", "del"]),
        ("it's 10/10", ["it", "s", "10", "10"]),
        ("2 < 3 and 5 > 4, <3", ["2", "3", "and", "5", "4", "3"]),
        ("Été à Österreich", ["été", "à", "österreich"]),
        ("cafe\u0301 caf\u00e9", ["caf\u00e9", "caf\u00e9"]),
        ("这部电影 good片", ["这", "部", "电", "影", "good", "片"]),
        ("ガ\u30ab\u3099。1京2", ["ガ", "ガ", "1", "京", "2"]),
        ("ดี ကို", ["ด", "ี", "က", "ိ", "ု"]),
        ("a:p京 :p", ["a", ":p", "京", ":p"]),
        ("좋아요 में", ["좋아요", "में"]),
        ("love❤\ufe0f \U0001f44d\U0001f3fd :D\u2b50", ["love", "❤", "\U0001f44d", ":d", "\u2b50"]),
        ("", []),
        (" \t\n...", []),
    ],
)
def test_words_by_example(text, tokens):
    assert words(PLAIN, text) == tokens


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=string.printable))
def test_words_by_the_rules(text):
    assert words(PLAIN, text) == expected_tokens(text)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Well, it's 10/10!", ["well", ",", "it", "'", "s", "10", "/", "10", "!"]),
        ("so :-) (good) ::( a:del", ["so", ":)", "(", "good", ")", ":", ":(", "a", ":", "del"]),
        ("Good<br /><br />film <3 snake_case", ["good", "film", "<", "3", "snake_case"]),
        ("«ça» 5€ … – 好。", ["«", "ça", "»", "5", "€", "…", "–", "好", "。"]),
        ("\U0001f44d\U0001f3fd ❤\ufe0f a\u200db \u200b", ["\U0001f44d", "❤", "a", "b"]),
    ],
)
def test_punctuation_by_example(text, tokens):
    assert words(MARKED, text) == tokens


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=string.printable))
def test_punctuation_by_the_rules(text):
    tokens = expected_tokens(text, marks=rf"|[{re.escape(string.punctuation)}]")
    assert words(MARKED, text) == tokens


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_punctuation_is_that_of_unicode(text):
    plain, kept = words(PLAIN, text), words(MARKED, text)
    left = [token for token in kept if token not in plain]
    assert [token for token in kept if token in plain] == plain
    # "Cn": a character of a later Unicode than Python's.
    assert all(unicodedata.category(token)[0] in "PS" or unicodedata.category(token) == "Cn" for token in left)


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_unicode_text_gives_ids_and_offsets_into_it(text):
    encoding = PLAIN(text, return_offsets_mapping=True)
    end = 0
    for token, (start, stop) in zip(encoding["input_ids"], encoding["offset_mapping"]):
        assert end <= start < stop <= len(text)
        end = stop
        piece = text[start:stop].lower()
        if PLAIN.decode([token]).isascii() and token > 1:
            assert PLAIN.decode([token]) == piece.replace("-", "")


def test_most_frequent_first_and_special_tokens_lead():
    vocabulary = build_tokenizer(TEXTS).get_vocab()
    assert vocabulary["<pad>"] == 0 and vocabulary["<unk>"] == 1
    assert vocabulary["the"] == 2 and vocabulary["film"] == 3 and vocabulary["plot"] == 4
    assert len(vocabulary) == 9
    assert build_tokenizer(TEXTS).get_vocab() == vocabulary


def test_size_and_frequency_limits():
    assert set(build_tokenizer(TEXTS, max_vocab_size=4).get_vocab()) == {"<pad>", "<unk>", "the", "film"}
    assert set(build_tokenizer(TEXTS, min_frequency=2).get_vocab()) == {"<pad>", "<unk>", "the", "film", "plot"}


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["...", ""], {}, "vocabulary is empty"),
        (TEXTS, {"min_frequency": 9}, "vocabulary is empty"),
        (TEXTS, {"max_vocab_size": 2}, "at least 3, .* got 2"),
        (TEXTS, {"min_frequency": 0}, "at least 1, got 0"),
    ],
)
def test_a_vocabulary_of_nothing_is_refused(texts, options, message):
    with pytest.raises(InputError, match=message):
        build_tokenizer(texts, **options)


def test_saves_as_a_plain_tokenizer_file(tmp_path):
    tokenizer = build_tokenizer(TEXTS)
    tokenizer.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["The FILM :-)", "plot"]
    batch = loaded(texts, padding=True)
    assert batch["input_ids"] == tokenizer(texts, padding=True)["input_ids"]
    assert batch["attention_mask"][1] == [1, 0, 0]
    assert set(batch) == {"input_ids", "attention_mask"}
