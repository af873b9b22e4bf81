"""Explanations against what they must add up to, and against the model on the changed texts themselves."""

import re

import numpy as np
import pytest
import torch
from test_bulk import TOKENIZER, make_model
from test_ngrams import bucket
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, TextClassificationPipeline

from modeling_rnnsent import RNNSentConfig, RNNSentForSequenceClassification
from modeling_rnnsent.card import show_mistakes
from modeling_rnnsent.errors import InputError
from modeling_rnnsent.explaining import Explainer
from modeling_rnnsent.showing import in_colours, in_columns

TEXT = "A great film<br />and NOT a dull plot :-) é unseen"
WORDS = ["A", "great", "film", "and", "NOT", "a", "dull", "plot", ":-)", "é", "unseen"]
MODELS = [
    {"pooling": "max_mean", "bidirectional": True},
    {"pooling": "last", "cell_type": "gru"},
    {"pooling": "mean", "ngram_order": 4, "ngram_buckets": 4096, "ngram_weight": 0.3, "ngram_presence": False},
    {"pooling": "max_mean", "bidirectional": True, "ngram_order": 2, "ngram_buckets": 4096, "ngram_weight": 1.0},
    {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}, "ngram_order": 2},
    {"problem_type": "multi_label_classification", "cell_type": "rnn"},
    {"input_encoding": "one_hot", "pooling": "mean"},
    {"problem_type": "regression", "num_labels": 1, "id2label": {0: "stars"}, "label2id": {"stars": 0}},
]


@pytest.fixture(params=MODELS, ids=lambda settings: "-".join(map(str, settings.values()))[:40])
def explainer(request, tmp_path):
    model = make_model(tmp_path, **request.param)
    if model.ngrams is not None:
        model.ngrams.scores.normal_()
        model.ngrams.bias.normal_()
    return Explainer(model, TOKENIZER)


def margin(logits, target, problem_type):
    if problem_type in ("multi_label_classification", "regression"):
        return float(logits[target])
    others = [value for index, value in enumerate(logits) if index != target]
    return float(logits[target]) - float(sum(others)) / len(others)


@pytest.mark.parametrize("text", [TEXT, "Great film"])  # which is shorter than the longest n-grams
def test_contributions_add_up_to_the_score(explainer, text):
    model, config = explainer.model, explainer.model.config
    explanation = explainer(text)
    assert explanation.words == (WORDS if text == TEXT else ["Great", "film"])
    target = config.label2id[explanation.label]
    ids = torch.tensor([TOKENIZER(text)["input_ids"]])
    with torch.no_grad():
        whole = margin(model(ids).logits[0], target, config.problem_type)
        # A text of as many words whose embeddings are zero and that have no n-grams.
        pooled = model.rnnsent(inputs_embeds=torch.zeros(1, ids.shape[1], model.rnnsent.recurrence.input_size))
        nothing = model.classifier(pooled.pooler_output)[0]
        if model.ngrams is not None:
            bias = model.ngrams.bias
            bias = torch.nn.functional.pad(bias, (1, 0)) if model.ngrams.is_binary else bias
            nothing = torch.lerp(nothing, bias, config.ngram_weight)
    assert explanation.contributions.sum() == pytest.approx(
        whole - margin(nothing, target, config.problem_type), abs=2e-3
    )


@pytest.mark.parametrize("presence", [False, True])
def test_an_ngrams_score_is_shared_out_between_its_words(presence, tmp_path):
    settings = {"ngram_order": 2, "ngram_buckets": 4096, "ngram_weight": 1.0, "ngram_presence": presence}
    model = make_model(tmp_path, **settings)
    text = "great film and great film"
    ids = TOKENIZER(text)["input_ids"]
    model.ngrams.scores.zero_()
    model.ngrams.scores[bucket(ids[:2], 4096)] = 3.0
    count = 6 if presence else 9  # of the n-grams that are different, or all
    each = 3.0 / count**0.5 / 2 / (2 if presence else 1)
    contributions = Explainer(model, TOKENIZER)(text, label="pos").contributions
    np.testing.assert_allclose(contributions, [each, each, 0, each, each], atol=1e-5)


def test_words_that_do_not_meet_have_what_each_adds(tmp_path):
    """Without recurrent weights and with mean pooling the score is a sum over words."""
    model = make_model(tmp_path, cell_type="rnn", pooling="mean", initializer_range=1.0)
    parts = dict(model.rnnsent.recurrence.named_parameters())
    with torch.no_grad():
        parts["weight_hh_l0"].zero_()
        ids = torch.tensor(TOKENIZER(TEXT)["input_ids"])
        bias = parts["bias_ih_l0"] + parts["bias_hh_l0"]
        states = torch.tanh(model.get_input_embeddings()(ids) @ parts["weight_ih_l0"].t() + bias)
        towards = model.classifier.out_proj.weight[1] - model.classifier.out_proj.weight[0]
        expected = (states - torch.tanh(bias)) @ towards / len(ids)
    contributions = Explainer(model, TOKENIZER)(TEXT, label="pos").contributions
    assert expected.abs().max() > 0.01
    np.testing.assert_allclose(contributions, expected, atol=1e-4)


def test_temperature_divides_what_it_divides_in_the_model(explainer):
    model, config = explainer.model, explainer.model.config
    before = explainer(TEXT)
    target, ids = config.label2id[before.label], torch.tensor([TOKENIZER(TEXT)["input_ids"]])
    with torch.no_grad():
        whole = margin(model(ids).logits[0], target, config.problem_type)
        config.temperature = 2.5
        factor = margin(model(ids).logits[0], target, config.problem_type) / whole
    after = explainer(TEXT, label=before.label)
    np.testing.assert_allclose(after.contributions, factor * before.contributions, rtol=1e-4, atol=1e-6)


def test_scores_without_a_word_and_after_every_word_are_the_models(explainer):
    classify = TextClassificationPipeline(model=explainer.model, tokenizer=TOKENIZER, top_k=None)
    if explainer.problem_type == "regression":
        classify.model.config.function_to_apply = "none"  # a pipeline makes a probability of a lone value else

    def score(words, label):
        return next(answer["score"] for answer in classify([" ".join(words)])[0] if answer["label"] == label)

    explanation = explainer(TEXT, contributions=False, changes=True, reading=True)
    words, label = explanation.words, explanation.label
    assert explanation.contributions is None and explanation.score == pytest.approx(score(words, label), abs=1e-6)
    first = explainer(TEXT, contributions=False, changes=3).changes
    np.testing.assert_allclose(first, explanation.changes[:3], atol=1e-6)
    for place in range(len(words)):
        without = score(words[:place] + words[place + 1 :], label)
        assert explanation.changes[place] == pytest.approx(explanation.score - without, abs=1e-5)
        assert explanation.reading[place] == pytest.approx(score(words[: place + 1], label), abs=1e-5)


def test_label_to_explain_and_a_text_of_no_words(explainer):
    names = list(explainer.config.label2id)
    scores = [explainer(TEXT, label=name).score for name in names]
    if explainer.config.problem_type not in ("multi_label_classification", "regression"):
        assert sum(scores) == pytest.approx(1, abs=1e-5)
    if len(names) == 2 and explainer.config.problem_type is None:
        first, second = (explainer(TEXT, label=name).contributions for name in names)
        np.testing.assert_allclose(first, -second, atol=1e-4)
    with pytest.raises(InputError, match="no label 'perhaps', only"):
        explainer(TEXT, label="perhaps")
    empty = explainer("!?", changes=True, reading=True)
    assert in_columns(empty) == "(no words)"
    assert empty.words == [] and len(empty.contributions) == len(empty.changes) == len(empty.reading) == 0


def test_tokens_that_are_not_in_the_text_or_share_a_character_show_nothing_twice(tmp_path):
    """BERT's marks at a text's ends, and bytes of one character."""
    marked = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "good": 3, "film": 4}, "[UNK]"))
    marked.pre_tokenizer = pre_tokenizers.Whitespace()
    marked.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    in_bytes = Tokenizer(models.BPE({letter: place for place, letter in enumerate(letters)}, []))
    in_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for backend, text in ((marked, "good film"), (in_bytes, "a \U0001f600!")):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
        config = RNNSentConfig(vocab_size=len(tokenizer), embedding_size=4, hidden_size=4)
        explainer = Explainer(RNNSentForSequenceClassification(config), tokenizer)
        explanation = explainer(text)
        assert "".join(word for word in explanation.words).replace(" ", "") == text.replace(" ", "")
        assert re.sub(r"\033\[[0-9;]*m", "", in_colours(explanation)).split("  ", 1)[1] == text
        (shown,) = [line for line in show_mistakes(explainer, [text], ["LABEL_0"]) if line.startswith(">")]
        assert re.sub("<[^>]*>", "", shown) == f"> {text}"


def test_columns_and_colours_state_their_units(explainer):
    explanation = explainer(TEXT, changes=True, reading=True)
    title, first, *_ = in_columns(explanation).splitlines()
    unit, contributed = "probability", "log-odds"
    if explainer.problem_type == "regression":
        unit, contributed = "value", "value"
        assert f"stars {explanation.score:.6g}  " in in_colours(explanation)
    else:
        assert f"{explanation.label} {explanation.score:.1%}  " in in_colours(explanation)
    assert title == f"contribution ({contributed})  left out ({unit})  read so far ({unit})  word"
    measures = [explanation.contributions[0], explanation.changes[0], explanation.reading[0]]
    assert [float(cell) for cell in first.split()[:3]] == pytest.approx(measures, abs=6e-4) and len(title) > len(first)
