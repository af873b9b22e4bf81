"""The models through their public interface, against references written out here."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from transformers.generation.utils import DeferredStopCheck
from transformers.utils import logging

from modeling_rnnsent import (
    RNNSentConfig,
    RNNSentForCausalLM,
    RNNSentForSequenceClassification,
    RNNSentForTokenClassification,
    RNNSentModel,
    RNNSentPreTrainedModel,
)
from modeling_rnnsent.dropout_rnnsent import drop_out
from modeling_rnnsent.softmax_rnnsent import sampled_cross_entropy

VOCABULARY = 23


def make(model_class, **settings):
    torch.manual_seed(0)
    config = RNNSentConfig(**{"vocab_size": VOCABULARY, "embedding_size": 6, "hidden_size": 8, **settings})
    return model_class(config).eval()


def make_batch(lengths, side="right"):
    torch.manual_seed(1)
    width = max(lengths)
    ids, mask = torch.zeros(len(lengths), width, dtype=torch.long), torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        places = slice(0, length) if side == "right" else slice(width - length, width)
        ids[row, places] = torch.randint(2, VOCABULARY, (length,))
        mask[row, places] = 1
    return {"input_ids": ids, "attention_mask": mask}


def book_reference(model, input_ids, lengths):
    """
    The chapter's RNN class: embedding, packed LSTM, last hidden state(s), linear, ReLU, linear, sigmoid. Returns the
    probabilities and the parameters that they come from, in the model's order.
    """
    config = model.config
    lstm = nn.LSTM(config.embedding_size, config.hidden_size, batch_first=True, bidirectional=config.bidirectional)
    lstm.load_state_dict(model.rnnsent.recurrence.state_dict())
    packed = pack_padded_sequence(model.rnnsent.embeddings(input_ids), lengths, batch_first=True, enforce_sorted=False)
    _, (hidden, _) = lstm(packed)
    features = torch.cat((hidden[-2], hidden[-1]), dim=1) if config.bidirectional else hidden[-1]
    features = torch.relu(model.classifier.dense(features))
    probabilities = torch.sigmoid(model.classifier.out_proj(features)).squeeze(1)
    return probabilities, [model.rnnsent.embeddings.weight, *lstm.parameters(), *model.classifier.parameters()]


@pytest.mark.parametrize("bidirectional", [False, True])
def test_sigmoid_head_is_the_chapters_classifier(bidirectional):
    model = make(
        RNNSentForSequenceClassification,
        classifier_head="sigmoid",
        classifier_hidden_size=5,
        bidirectional=bidirectional,
    )
    batch, labels = make_batch([7, 1, 4]), torch.tensor([1, 0, 1])
    expected, parameters = book_reference(model, batch["input_ids"], [7, 1, 4])
    output = model(**batch, labels=labels)
    torch.testing.assert_close(output.logits.softmax(-1)[:, 1], expected)
    loss = nn.functional.binary_cross_entropy(expected, labels.float())
    torch.testing.assert_close(output.loss, loss)
    torch.testing.assert_close(
        torch.autograd.grad(output.loss, list(model.parameters())), torch.autograd.grad(loss, parameters)
    )


@pytest.mark.parametrize("pooling", ["last", "max", "mean", "max_mean", "attention"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell_type", ["rnn", "lstm", "gru"])
def test_one_text_does_not_depend_on_its_batch(cell_type, bidirectional, pooling):
    model = make(
        RNNSentForSequenceClassification,
        cell_type=cell_type,
        bidirectional=bidirectional,
        pooling=pooling,
        num_hidden_layers=2,
    )
    lengths = [7, 1, 4, 7, 2]
    batch = make_batch(lengths)
    together = model(**batch).logits
    for row, length in enumerate(lengths):
        alone = model(batch["input_ids"][row : row + 1, :length]).logits
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["max", "mean", "max_mean", "attention"])
def test_pooling_by_its_formula(pooling):
    model = make(RNNSentModel, pooling=pooling, bidirectional=True, merge_mode="sum")
    lengths = [5, 2]
    output = model(**make_batch(lengths))
    for row, length in enumerate(lengths):
        states = output.last_hidden_state[row, :length]
        if pooling == "attention":
            weights = torch.softmax(
                torch.stack([model.pooler.context(torch.tanh(model.pooler.attention(state))) for state in states]), 0
            )
            expected = sum(weight * state for weight, state in zip(weights, states))
        else:
            parts = {"max": states.max(0).values, "mean": states.mean(0)}
            expected = torch.cat([parts[name] for name in pooling.split("_")])
        torch.testing.assert_close(output.pooler_output[row], expected)


@pytest.mark.parametrize(
    ("cell_type", "pooling"), list(itertools.product(["rnn", "lstm", "gru"], ["last", "max_mean", "attention"]))
)
def test_padding_may_stand_anywhere_in_eager_mode(cell_type, pooling):
    model = make(RNNSentForSequenceClassification, cell_type=cell_type, pooling=pooling, bidirectional=True)
    expected = model(**make_batch([6, 3, 1]), use_cache=True)
    left = make_batch([6, 3, 1], side="left")
    output = model(**left, use_cache=True)
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.state, expected.state)
    gapped = {
        "input_ids": torch.tensor([[5, 9, 9, 6, 9, 7]]),
        "attention_mask": torch.tensor([[1, 0, 0, 1, 0, 1]]),
    }
    torch.testing.assert_close(model(**gapped).logits, model(torch.tensor([[5, 6, 7]])).logits)
    states = model.rnnsent(**gapped).last_hidden_state[0]
    torch.testing.assert_close(states[[0, 3, 5]], model.rnnsent(torch.tensor([[5, 6, 7]])).last_hidden_state[0])
    assert not states[[1, 2, 4]].any()


@pytest.mark.parametrize("pooling", ["last", "max", "mean", "max_mean", "attention"])
@pytest.mark.parametrize("cell_type", ["rnn", "lstm", "gru"])
def test_a_text_of_no_tokens_has_a_class(cell_type, pooling):
    model = make(RNNSentForSequenceClassification, cell_type=cell_type, pooling=pooling, bidirectional=True)
    beside = model(input_ids=torch.tensor([[3, 4], [0, 0]]), attention_mask=torch.tensor([[1, 1], [0, 0]]))
    alone = model(input_ids=torch.zeros(1, 0))  # a tokenizer makes floats of no ids
    assert torch.isfinite(beside.logits).all()
    torch.testing.assert_close(beside.logits[1:], alone.logits)


def test_hidden_states_are_the_embeddings_and_every_layer():
    model = make(RNNSentModel, num_hidden_layers=3, bidirectional=True)
    batch = make_batch([5, 2])
    output = model(**batch, output_hidden_states=True)
    assert len(output.hidden_states) == 4
    torch.testing.assert_close(output.hidden_states[0], model.embeddings(batch["input_ids"]))
    torch.testing.assert_close(output.hidden_states[-1], output.last_hidden_state)
    assert [tuple(states.shape) for states in output.hidden_states[1:]] == [(2, 5, 16)] * 3
    as_tuple = model(**batch, output_hidden_states=True, return_dict=False)
    torch.testing.assert_close(as_tuple, output.to_tuple())


def test_tokens_are_classified_in_pieces_as_in_one():
    model = make(RNNSentForTokenClassification, num_hidden_layers=2)
    batch = make_batch([9, 9])["input_ids"]
    first = model(batch[:, :4], use_cache=True)
    second = model(batch[:, 4:], state=first.state)
    torch.testing.assert_close(torch.cat((first.logits, second.logits), dim=1), model(batch).logits)
    assert second.state is None


@pytest.mark.parametrize("kind", [RNNSentForSequenceClassification, RNNSentForTokenClassification])
def test_two_directions_read_no_pieces(kind):
    model, batch = make(kind, bidirectional=True), make_batch([9, 9])["input_ids"]
    state = model(batch, use_cache=True).state
    with pytest.raises(ValueError, match="`state` needs `bidirectional=False`"):
        model(batch, state=state)


def test_one_hot_equals_one_hot_vectors_and_refuses_resizing():
    model = make(RNNSentForSequenceClassification, input_encoding="one_hot")
    batch = make_batch([5, 2])
    vectors = nn.functional.one_hot(batch["input_ids"], VOCABULARY).float()
    output = model(**batch, output_hidden_states=True)
    torch.testing.assert_close(
        output.logits, model(inputs_embeds=vectors, attention_mask=batch["attention_mask"]).logits
    )
    torch.testing.assert_close(output.hidden_states[0], vectors)
    with pytest.raises(ValueError, match="one_hot"):
        model.resize_token_embeddings(30)


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels", "loss"),
    [
        ("single_label_classification", 4, torch.tensor([3, 0, 1]), nn.functional.cross_entropy),
        ("multi_label_classification", 4, torch.rand(3, 4).round(), nn.functional.binary_cross_entropy_with_logits),
        ("regression", 1, torch.randn(3), lambda logits, labels: (logits.squeeze(1) - labels).square().mean()),
    ],
)
def test_losses(problem_type, num_labels, labels, loss):
    model = make(RNNSentForSequenceClassification, problem_type=problem_type, num_labels=num_labels)
    output = model(**make_batch([5, 2, 3]), labels=labels)
    assert output.logits.shape == (3, num_labels)
    torch.testing.assert_close(output.loss, loss(output.logits, labels))
    # Trainer's gradient accumulation: the sum over these texts, divided by the texts of the whole update
    items = 2 * labels.numel()
    accumulated = model(**make_batch([5, 2, 3]), labels=labels, num_items_in_batch=torch.tensor(items))
    torch.testing.assert_close(accumulated.loss, output.loss / 2)


def test_token_classification_has_a_class_a_token():
    model = make(RNNSentForTokenClassification, num_labels=3, bidirectional=True, classifier_hidden_size=4)
    batch = make_batch([5, 2])
    labels = torch.where(batch["attention_mask"] == 1, batch["input_ids"] % 3, -100)
    output = model(**batch, labels=labels)
    assert output.logits.shape == (2, 5, 3)
    counted = labels != -100
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits[counted], labels[counted]))


@pytest.mark.parametrize(
    "settings",
    [{"cell_type": "gru"}, {"cell_type": "lstm"}, {"cell_type": "rnn"}, {"cell_type": "rnn", "recurrence": "output"}],
)
def test_generate_carries_the_state(settings):
    model = make(RNNSentForCausalLM, num_hidden_layers=2, **settings)
    prompt = torch.tensor([[3, 4, 5]])
    expected = prompt
    for _ in range(6):  # greedy by hand, the whole text read again for every token
        expected = torch.cat((expected, model(expected).logits[:, -1:].argmax(-1)), dim=1)
    seen = []
    model.rnnsent.register_forward_pre_hook(
        lambda module, inputs, named: seen.append(inputs[0].shape[1]), with_kwargs=True
    )
    generated = model.generate(prompt, max_new_tokens=6, do_sample=False, eos_token_id=None)
    torch.testing.assert_close(generated, expected)
    assert seen == [3, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_language_models_loss_without_all_of_its_logits_is_the_same(bidirectional, monkeypatch):
    model, batch = make(RNNSentForCausalLM, bidirectional=bidirectional), make_batch([9, 4, 7])
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    whole = model(**batch, labels=labels)
    for most in (1 << 26, 5 * VOCABULARY, 1):
        monkeypatch.setattr("modeling_rnnsent.modeling_rnnsent._MOST_LOGITS", most)
        output = model(**batch, labels=labels, logits_to_keep=1)
        torch.testing.assert_close(output.loss, whole.loss)
        assert output.logits.shape == (3, 1, VOCABULARY)


def test_generate_answers_what_is_asked_of_a_cache_on_apples_gpus(monkeypatch):
    answers, is_supported = [], DeferredStopCheck.is_supported

    def ask(device, *given, **named):
        answers.append(is_supported(torch.device("mps"), *given, **named))
        return False  # here it is another device

    monkeypatch.setattr(DeferredStopCheck, "is_supported", ask)
    make(RNNSentForCausalLM).generate(torch.tensor([[3, 4]]), max_new_tokens=3)
    assert answers == [True]


def test_generate_in_a_left_padded_batch_and_with_beams():
    model = make(RNNSentForCausalLM)
    batch = make_batch([4, 2], side="left")
    together = model.generate(**batch, max_new_tokens=5, do_sample=False)
    for row, length in enumerate([4, 2]):
        alone = model.generate(batch["input_ids"][row : row + 1, 4 - length :], max_new_tokens=5, do_sample=False)
        torch.testing.assert_close(together[row, 4:], alone[0, length:])
    with_state = model.generate(**batch, max_new_tokens=5, num_beams=3, do_sample=False)
    without = model.generate(**batch, max_new_tokens=5, num_beams=3, do_sample=False, use_cache=False)
    torch.testing.assert_close(with_state, without)


def test_generate_in_a_right_padded_batch():
    model = make(RNNSentForCausalLM)
    batch, settings = make_batch([4, 2]), {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    left = model.generate(**make_batch([4, 2], side="left"), **settings)
    for use_cache in (True, False):
        found = model.generate(**batch, use_cache=use_cache, **settings)
        assert torch.equal(found[:, :4], batch["input_ids"]) and torch.equal(found[:, 4:], left[:, 4:])
    vectors = model.rnnsent.embeddings(batch["input_ids"])
    found = model.generate(inputs_embeds=vectors, attention_mask=batch["attention_mask"], **settings)
    torch.testing.assert_close(found, left[:, 4:])


def test_words_end_no_generation_by_their_letters():
    model = make(RNNSentForCausalLM)
    with pytest.raises(ValueError, match=r"`stop_strings` are for tokens that are parts of words, got \['the end'\]"):
        model.generate(torch.tensor([[3, 4]]), stop_strings=["the end"])


def test_generate_goes_on_from_a_state_and_from_embeddings():
    model = make(RNNSentForCausalLM)
    ids = make_batch([7, 7])["input_ids"]
    state = model(ids[:, :4]).state
    for beams in (1, 3):
        settings = {"max_new_tokens": 5, "do_sample": False, "num_beams": beams, "eos_token_id": None}
        whole = model.generate(ids, **settings)
        torch.testing.assert_close(model.generate(ids[:, 4:], state=state, **settings), whole[:, 4:])
    by_vectors = model.generate(inputs_embeds=model.rnnsent.embeddings(ids), **settings)
    torch.testing.assert_close(by_vectors, whole[:, 7:])


def test_causal_lm_loss_is_the_same_on_either_side_of_padding():
    model = make(RNNSentForCausalLM)
    losses = []
    for side in ("right", "left"):
        batch = make_batch([6, 3], side)
        losses.append(model(**batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)).loss)
    torch.testing.assert_close(*losses)


def test_causal_lm_loss_shifts_and_refuses_two_directions():
    model = make(RNNSentForCausalLM)
    ids = make_batch([6])["input_ids"]
    output = model(ids, labels=ids)
    assert output.state is None and model(ids).state is not None  # with a loss nobody reads on, unless told
    assert model(ids, labels=ids, use_cache=True).state is not None
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits[0, :-1], ids[0, 1:]))
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, output.logits[:, -2:])


def test_two_directions_learn_the_next_and_the_last_token():
    model = make(RNNSentForCausalLM, bidirectional=True, tie_word_embeddings=True)
    lengths = [6, 1, 4]
    batch = make_batch(lengths)
    output = model(**batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100))
    words = model.rnnsent.embeddings.weight
    total = 0.0
    for row, length in enumerate(lengths):
        ids = batch["input_ids"][row, :length]
        forward, backward = model.rnnsent(ids[None]).last_hidden_state[0].chunk(2, dim=-1)
        next_logits, last_logits = (
            projection(states) @ words.t() for projection, states in zip(model.projections, (forward, backward))
        )
        torch.testing.assert_close(output.logits[row, :length], next_logits)
        total += nn.functional.cross_entropy(next_logits[:-1], ids[1:], reduction="sum")
        total += nn.functional.cross_entropy(last_logits[1:], ids[:-1], reduction="sum")
    torch.testing.assert_close(output.loss, total / (2 * sum(max(0, length - 1) for length in lengths)))
    with pytest.raises(ValueError, match="generate"):
        model.generate(batch["input_ids"])
    with pytest.raises(ValueError, match="num_hidden_layers"):
        make(RNNSentForCausalLM, bidirectional=True, num_hidden_layers=2)


@pytest.mark.parametrize("tied", [False, True])
def test_sampled_softmax_comes_close_to_the_whole(tied):
    settings = {"bidirectional": True, "tie_word_embeddings": tied, "vocab_size": 200}
    full = make(RNNSentForCausalLM, **settings)
    sampled = make(RNNSentForCausalLM, sampled_softmax_size=4000, **settings)
    batch = make_batch([40, 30, 35])
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    expected = full(**batch, labels=labels).loss
    torch.testing.assert_close(sampled(**batch, labels=labels).loss, expected)  # in evaluation it is the whole one
    loss = sampled.train()(**batch, labels=labels).loss
    torch.testing.assert_close(loss, expected, atol=0.02, rtol=0.02)
    names = [name for name, _ in full.named_parameters()]
    expected_gradients = torch.autograd.grad(expected, list(full.parameters()))
    for name, actual, wanted in zip(names, torch.autograd.grad(loss, list(sampled.parameters())), expected_gradients):
        assert torch.cosine_similarity(actual.flatten(), wanted.flatten(), dim=0) > 0.97, name
    half = sampled.bfloat16()(**batch, labels=labels).loss
    half.backward()
    torch.testing.assert_close(half.float(), loss, atol=0.1, rtol=0.02)
    assert all(parameter.grad.isfinite().all() for parameter in sampled.parameters())


def test_sampled_softmax_is_the_whole_one_for_tokens_that_are_sure():
    """Where the right word has half of the probability and more, its share must not be taken from the sample's."""
    torch.manual_seed(0)
    weight, targets = torch.randn(50, 16), torch.arange(50).repeat(2)
    hidden = (weight[targets] * torch.linspace(0, 0.5, 100)[:, None]).requires_grad_()
    weight.requires_grad_()
    expected = nn.functional.cross_entropy(hidden @ weight.t(), targets, reduction="sum")
    right = torch.exp(-nn.functional.cross_entropy(hidden @ weight.t(), targets, reduction="none"))
    assert right.min() < 0.1 and 0.3 < right.median() < 0.99 and right.max() > 0.99
    found = sampled_cross_entropy(hidden, targets, weight, 200_000)
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)
    for actual, wanted in zip(*(torch.autograd.grad(loss, [hidden, weight]) for loss in (found, expected))):
        torch.testing.assert_close(actual, wanted, rtol=0.05, atol=0.02 * wanted.abs().max().item())


@pytest.mark.parametrize("place", ["hidden", "classifier"])
def test_variational_dropout_of_states_draws_one_mask_a_text(place):
    settings = {f"{place}_dropout": 0.5, "variational_dropout": True, "cell_type": "rnn", "vocab_size": 50}
    model = make(RNNSentForCausalLM, num_hidden_layers=2, hidden_size=50, **settings).train()
    with torch.no_grad():  # the second layer and the head hand on what they are given
        for name, parameter in model.rnnsent.recurrence.named_parameters():
            if name.endswith("l1"):
                parameter.copy_(torch.eye(50) if "weight_ih" in name else torch.zeros_like(parameter))
        model.lm_head.weight.copy_(torch.eye(50))
    kept = model(torch.randint(2, 50, (3, 9))).logits != 0
    assert torch.equal(kept, kept[:, :1].expand_as(kept)) and 0.3 < kept.float().mean() < 0.7
    assert not torch.equal(kept[0], kept[1])
    assert (model.eval()(torch.randint(2, 50, (3, 9))).logits != 0).all()


def test_variational_dropout_draws_one_mask_a_text():
    settings = {"embedding_dropout": 0.5, "variational_dropout": True, "embedding_size": 50}
    model = make(RNNSentModel, **settings).train()
    seen = []
    model.recurrence.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    ids = torch.randint(2, VOCABULARY, (3, 9))
    model(ids)
    kept = seen[0] != 0
    assert torch.equal(kept, kept[:, :1].expand_as(kept)) and 0.3 < kept.float().mean() < 0.7
    assert not torch.equal(kept[0], kept[1])
    torch.testing.assert_close(seen[0], 2 * model.embeddings(ids) * kept)


def test_padding_embedding_stays_zero_and_is_any_id():
    model = make(RNNSentForSequenceClassification, pad_token_id=5)
    assert not model.rnnsent.embeddings.weight[5].any()
    model(torch.tensor([[3, 5]]), attention_mask=torch.tensor([[1, 0]]), labels=torch.tensor([1])).loss.backward()
    assert not model.rnnsent.embeddings.weight.grad[5].any()


@pytest.mark.parametrize("place", ["word", "embedding", "hidden", "weight", "pooling", "classifier"])
def test_dropout_acts_in_training_only(place):
    model = make(RNNSentForSequenceClassification, num_hidden_layers=2, pooling="mean", **{f"{place}_dropout": 0.3})
    batch = make_batch([6, 3])
    torch.testing.assert_close(model(**batch).logits, model(**batch).logits)
    model.train()
    assert not torch.allclose(model(**batch).logits, model(**batch).logits)


def test_word_dropout_drops_whole_words():
    model = make(RNNSentModel, word_dropout=0.5).train()
    embeddings = model(torch.randint(2, VOCABULARY, (4, 50)), output_hidden_states=True).hidden_states[0]
    dropped = embeddings.eq(0).all(-1)
    assert torch.equal(dropped, embeddings.eq(0).any(-1)) and 0.3 < dropped.float().mean() < 0.7


@pytest.mark.parametrize("probability", [0.0, 1e-6, 0.1, 0.3, 0.5, 0.99, 1.0])
def test_dropout_is_that_of_torch(probability):
    # An odd number of elements, each in the place of one draw; 5 standard deviations.
    input = torch.full((7, 1001, 37), 3.0, dtype=torch.float64, requires_grad=True)
    assert drop_out(input, probability, False) is input
    torch.manual_seed(0)
    output = drop_out(input, probability, True)
    kept = output != 0
    deviation = (probability * (1 - probability) / input.numel()) ** 0.5
    assert abs(kept.double().mean().item() - (1 - probability)) <= 5 * deviation + 2**-17
    torch.testing.assert_close(output[kept], input[kept] / (1 - probability), rtol=2**-9, atol=0)
    output.sum().backward()
    torch.testing.assert_close(input.grad * 3, output)
    torch.manual_seed(0)
    assert torch.equal(drop_out(input, probability, True), output)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    dropped = (drop_out(torch.ones(200, 1000), 0.3, True) == 0).double().flatten()
    for distance in range(1, 9):
        correlation = torch.corrcoef(torch.stack((dropped[:-distance], dropped[distance:])))[0, 1]
        assert abs(correlation) < 5 / len(dropped) ** 0.5


@pytest.mark.parametrize("pooling", ["mean", "max", "max_mean", "attention"])
def test_pooling_dropout_drops_elements_of_the_pooled_states(pooling):
    model = make(RNNSentForSequenceClassification, pooling=pooling, bidirectional=True, pooling_dropout=0.25)
    plain = make(RNNSentForSequenceClassification, pooling=pooling, bidirectional=True)
    plain.load_state_dict(model.state_dict())
    batch = make_batch([60, 40])
    torch.testing.assert_close(model(**batch).logits, plain(**batch).logits)
    model.train()
    torch.manual_seed(0)
    pooled = model.rnnsent(**batch).pooler_output
    # `last_hidden_state` is whole; the same mask over it gives what was pooled.
    states = plain.rnnsent(**batch).last_hidden_state
    torch.testing.assert_close(model.rnnsent(**batch).last_hidden_state, states)
    torch.manual_seed(0)
    dropped, mask = drop_out(states, 0.25, True), batch["attention_mask"].bool()
    expected, _ = plain.rnnsent.pooler(dropped, None, mask)
    if "max" in pooling:  # of what is kept, as it is
        kept = states.masked_fill((dropped == 0) | ~mask.unsqueeze(-1), -torch.inf).amax(dim=1)
        expected = torch.cat((kept, expected[:, kept.shape[1] :]), dim=1)
    torch.testing.assert_close(pooled, expected)


def test_a_maximum_of_nothing_is_zero():
    model = make(RNNSentForSequenceClassification, pooling="max", pooling_dropout=0.9).train()
    pooled = model.rnnsent(torch.tensor([[3], [4], [5]])).pooler_output
    states = model.rnnsent(torch.tensor([[3], [4], [5]])).last_hidden_state[:, 0]
    assert ((pooled == 0) | (pooled == states)).all() and (pooled == 0).any()


@pytest.mark.parametrize("cell_type", ["rnn", "lstm", "gru"])
def test_every_parameter_of_the_layer_ends_exactly_one_name_of_the_model(cell_type):
    model = make(RNNSentForSequenceClassification, cell_type=cell_type, bidirectional=True, num_hidden_layers=2)
    names = [name for name, _ in model.named_parameters()]
    for own, _ in getattr(nn, cell_type.upper())(6, 8, 2, bidirectional=True).named_parameters():
        assert len([name for name in names if name.endswith(own)]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"input_ids": torch.ones(3, dtype=torch.long)}, "shape"),
        ({"input_ids": torch.ones(1, 3, dtype=torch.long), "attention_mask": torch.ones(1, 2)}, "attention_mask"),
        ({"inputs_embeds": torch.ones(1, 3, 5)}, "inputs_embeds"),
        ({"inputs_embeds": torch.ones(1, 3, 6, dtype=torch.long)}, r"must be floats of shape .*, got torch.int64"),
        ({"input_ids": torch.ones(1, 3, dtype=torch.long), "state": (torch.zeros(1, 2, 8),) * 2}, "state"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(RNNSentModel)(**arguments)


@pytest.mark.parametrize("settings", [{"classifier_head": "sigmoid"}, {}, {"ngram_order": 2, "ngram_buckets": 16}])
def test_labels_of_another_kind_are_refused_and_leave_the_model_as_it_was(settings, tmp_path):
    model, batch = make(RNNSentForSequenceClassification, **settings).train(), make_batch([3, 2])
    with pytest.raises(ValueError, match=r"class indices of shape \(2,\).*, got torch.float32 of shape \(2,\)"):
        model(**batch, labels=torch.tensor([1.0, 0.0]))
    if settings:
        with pytest.raises(ValueError, match=r"class indices of shape \(2,\), got torch.float32 of shape \(2, 2\)"):
            model(**batch, labels=torch.eye(2))
    output = model(**batch, labels=torch.tensor([1, 0]))
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, torch.tensor([1, 0])))
    model.save_pretrained(tmp_path)
    loaded = RNNSentForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.problem_type == "single_label_classification"


def test_gradient_checkpointing_is_refused():
    with pytest.raises(ValueError, match="does not support"):
        make(RNNSentForSequenceClassification).activation_checkpointing_enable()


@pytest.mark.parametrize("cell_type", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(cell_type, dtype):
    model = make(RNNSentForSequenceClassification, cell_type=cell_type, bidirectional=True)
    batch = make_batch([6, 3])
    expected = model(**batch).logits
    half = model.to(dtype)(**batch, use_cache=True)
    assert half.logits.dtype == half.state[0].dtype == dtype
    torch.testing.assert_close(half.logits.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    "settings",
    [{"cell_type": "rnn"}, {"cell_type": "lstm"}, {"cell_type": "gru"}, {"cell_type": "rnn", "recurrence": "output"}],
    ids=str,
)
def test_autocast(settings):
    model = make(RNNSentForSequenceClassification, **settings, num_hidden_layers=2, bidirectional=True)
    with torch.no_grad():
        model.classifier.out_proj.weight.mul_(20)  # so that the answers of texts differ
    batch = {**make_batch([6, 3]), "labels": torch.tensor([0, 1])}
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = model(**batch, use_cache=True)
        output.loss.backward()
        found.append((output.logits.detach().float(), [part.grad for part in model.parameters()]))
        model.zero_grad()
    (expected, exact), (logits, gradients) = found
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.03 * float(expected.max() - expected.min()))
    for gradient, reference in zip(gradients, exact, strict=True):
        assert torch.nn.functional.cosine_similarity(gradient.flatten(), reference.flatten(), dim=0) > 0.99


def test_autocast_leaves_a_large_value_its_digits():
    model = make(RNNSentForSequenceClassification, num_labels=1, problem_type="regression", ngram_order=2)
    model.ngrams.bias.fill_(1990.6)
    with torch.no_grad():
        model.classifier.out_proj.bias.fill_(1987.3)
    batch = make_batch([6, 3])
    expected = model(**batch).logits
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(**batch).logits, expected, atol=0.01, rtol=0)


def test_one_label_of_no_said_kind_is_a_value():
    assert make(RNNSentForSequenceClassification, num_labels=1).config.problem_type == "regression"


@pytest.mark.parametrize("cell_type", ["rnn", "lstm", "gru"])
def test_no_texts_at_all(cell_type):
    model = make(RNNSentForSequenceClassification, cell_type=cell_type)
    assert model(torch.zeros(0, 5, dtype=torch.long)).logits.shape == (0, 2)


@pytest.mark.parametrize(
    "settings",
    [
        {"cell_type": "lstm", "bidirectional": True, "pooling": "max_mean"},
        {"cell_type": "gru", "pooling": "last", "num_hidden_layers": 2},
        {"cell_type": "rnn", "recurrence": "output", "bidirectional": True, "pooling": "attention"},
        {"cell_type": "rnn", "nonlinearity": "relu", "input_encoding": "one_hot"},
    ],
    ids=str,
)
def test_export_keeps_batch_and_length_free(settings):
    model = make(RNNSentForSequenceClassification, **settings)
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    program = torch.export.export(
        model,
        (),
        make_batch([5, 3]),
        dynamic_shapes={"input_ids": {0: batch, 1: time}, "attention_mask": {0: batch, 1: time}},
        strict=False,
    ).module()
    for lengths in ([9, 1, 4], [3], [1, 1], [2, 5, 5, 5]):
        torch.testing.assert_close(program(**make_batch(lengths)).logits, model(**make_batch(lengths)).logits)


def test_traced_graph_says_that_it_takes_right_padding(caplog, monkeypatch):
    model = make(RNNSentForSequenceClassification, bidirectional=True, return_dict=False)
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    logging.warning_once.cache_clear()  # said once a process, maybe by a test before this one
    with caplog.at_level("WARNING"):
        traced = torch.jit.trace(model, example_kwarg_inputs=make_batch([5, 3]), check_trace=False)
    assert "right-padded" in caplog.text
    for lengths in ([5, 3], [5, 1], [5, 5]):
        torch.testing.assert_close(traced(**make_batch(lengths)), model(**make_batch(lengths)))


@pytest.mark.parametrize(
    "cell",
    [{"cell_type": "rnn"}, {"cell_type": "lstm"}, {"cell_type": "gru"}, {"cell_type": "rnn", "recurrence": "output"}],
    ids=str,
)
def test_compiled_model_equals_the_eager_one(cell):
    model = make(RNNSentForSequenceClassification, **cell, bidirectional=True, pooling="max_mean")
    compiled = torch.compile(model, dynamic=True, backend="aot_eager")
    for lengths, side in (([6, 3], "right"), ([4, 4, 4], "right"), ([5, 2], "left")):
        batch = make_batch(lengths, side)
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits)


def test_a_head_of_one_unit_gives_way_to_one_of_more_labels(tmp_path):
    model = make(RNNSentForSequenceClassification, classifier_head="sigmoid")
    model.save_pretrained(tmp_path)
    other = {"num_labels": np.int64(5), "classifier_head": "softmax", "problem_type": None}
    loaded = RNNSentForSequenceClassification.from_pretrained(tmp_path, ignore_mismatched_sizes=True, **other)
    assert loaded(torch.tensor([[3]])).logits.shape == (1, 5) and loaded.config.num_labels == 5
    torch.testing.assert_close(loaded.rnnsent.state_dict(), model.rnnsent.state_dict())


def test_models_of_ones_own_with_these_inside_load_and_have_their_losses(tmp_path):
    class Reviews(RNNSentForSequenceClassification):
        pass

    class Tags(RNNSentForTokenClassification):
        pass

    class Both(RNNSentPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.rnnsent = RNNSentModel(config)
            self.norm = torch.nn.LayerNorm(config.output_size)
            self.post_init()

    ids = torch.tensor([[3, 4], [5, 6]])
    for own, model_class, labels in (
        (Reviews, RNNSentForSequenceClassification, torch.tensor([0, 1])),
        (Tags, RNNSentForTokenClassification, torch.tensor([[0, 1], [1, -100]])),
    ):
        model = make(model_class)
        model.save_pretrained(tmp_path)
        loaded = own.from_pretrained(tmp_path)
        torch.testing.assert_close(loaded(ids, labels=labels).loss, model(ids, labels=labels).loss)
    norm = Both.from_pretrained(tmp_path).norm
    assert (norm.weight == 1).all() and (norm.bias == 0).all()


def test_what_training_leaves_as_it_is_is_said(caplog, monkeypatch):
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    logging.warning_once.cache_clear()
    ids, labels = torch.tensor([[3, 4]]), torch.tensor([1])
    for settings, is_said in (
        ({}, False),
        ({"ngram_order": 2, "ngram_weight": 0.0}, False),
        ({"ngram_order": 2}, True),
    ):
        caplog.clear()
        make(RNNSentForSequenceClassification, **settings).train()(ids, labels=labels)
        assert ("load it with `ngram_order=0, temperature=1.0`" in caplog.text) == is_said


def test_mismatched_head_loads(tmp_path):
    model = make(RNNSentForSequenceClassification, num_labels=2)
    model.save_pretrained(tmp_path)
    loaded = RNNSentForSequenceClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert loaded(torch.tensor([[3]])).logits.shape == (1, 5)
    torch.testing.assert_close(loaded.rnnsent.state_dict(), model.rnnsent.state_dict())
    torch.testing.assert_close(RNNSentModel.from_pretrained(tmp_path).state_dict(), model.rnnsent.state_dict())


@pytest.mark.parametrize("pooling", ["last", "max", "mean", "max_mean", "attention"])
@pytest.mark.parametrize("cell_type", ["rnn", "lstm", "gru"])
def test_text_read_in_pieces_gives_what_it_gives_in_one(pooling, cell_type):
    torch.manual_seed(0)
    config = RNNSentConfig(
        vocab_size=50, embedding_size=8, hidden_size=6, num_hidden_layers=2, cell_type=cell_type, pooling=pooling
    )
    model = RNNSentForSequenceClassification(config).double().eval()
    ids = torch.randint(1, 50, (3, 40))
    lengths = torch.tensor([40, 13, 0])
    mask = (torch.arange(40) < lengths.unsqueeze(1)).long()
    whole = model(ids * mask, attention_mask=mask, use_cache=True)
    state = None
    for start, end in ((0, 1), (1, 15), (15, 15), (15, 39), (39, 40)):
        part = model((ids * mask)[:, start:end], attention_mask=mask[:, start:end], state=state, use_cache=True)
        state = part.state
    torch.testing.assert_close(part.logits, whole.logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, whole.state, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="`state` must be a tuple of tensors of shapes"):
        model(ids, state=(*state, state[0]))
