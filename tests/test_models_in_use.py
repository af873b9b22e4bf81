"""Models as users change them: other heads, types, labels and devices, and classes of their own."""

import importlib
import json
import math

import pytest
import torch
from test_models import make, make_batch
from torch import nn
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from modeling_rnnsent import (
    RNNSentForCausalLM,
    RNNSentForSequenceClassification,
    RNNSentForTokenClassification,
    RNNSentModel,
)

LENGTHS = [9, 1, 0, 3]  # ragged enough to be cut in time


def test_a_class_of_ones_own_is_the_one_that_loads(tmp_path, monkeypatch):
    code = "from modeling_rnnsent import RNNSentForSequenceClassification as Base\n\n\nclass Reviews(Base):\n    pass\n"
    (tmp_path / "reviews_of_mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("reviews_of_mine")
    make(module.Reviews).save_pretrained(tmp_path / "saved")
    entries = json.loads((tmp_path / "saved" / "config.json").read_text())["auto_map"]
    assert entries["AutoModelForSequenceClassification"] == "reviews_of_mine.Reviews"
    for place in entries.values():
        assert (tmp_path / "saved" / f"{place.split('.')[0]}.py").is_file()
    place = entries["AutoModelForSequenceClassification"]
    loaded = get_class_from_dynamic_module(place, str(tmp_path / "saved")).from_pretrained(tmp_path / "saved")
    assert type(loaded).__name__ == "Reviews" and type(loaded) is not module.Reviews
    RNNSentModel.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "again")
    entries = json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"]
    assert entries["AutoModelForSequenceClassification"] == "modeling_rnnsent.RNNSentForSequenceClassification"


def test_mean_and_scale_of_values_may_be_set_later(tmp_path):
    model = make(RNNSentForSequenceClassification, num_labels=1)
    batch, labels = make_batch(LENGTHS), torch.tensor([1990.0, 2001.0, 1950.0, 1970.0])
    before = model(**batch).logits
    model.config.value_mean, model.config.value_scale = 1980.0, 20.0
    answers = model(**batch).logits
    torch.testing.assert_close(answers, 20 * before + 1980)
    model.save_pretrained(tmp_path)
    loaded = RNNSentForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(**batch).logits, answers)
    loss = model.train()(**batch, labels=labels).loss  # in units of the values' variance
    torch.testing.assert_close(loss, ((answers.squeeze(1) - labels) / 20).square().mean())


@pytest.mark.parametrize("head", [nn.Linear(8, 2), nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))])
def test_another_head_is_trained(head):
    model = make(RNNSentForSequenceClassification).train()
    model.classifier = head
    model(**make_batch(LENGTHS), labels=torch.tensor([0, 1, 1, 0])).loss.backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32])
def test_classes_of_any_integers_are_classes(dtype):
    model, batch = make(RNNSentForSequenceClassification), make_batch(LENGTHS)
    labels = torch.tensor([0, 1, 1, 0])
    torch.testing.assert_close(
        model(**batch, labels=labels.to(dtype)).loss, nn.functional.cross_entropy(model(**batch).logits, labels)
    )
    assert model.config.problem_type == "single_label_classification"


def test_integers_for_every_label_are_refused_unless_several_are_said_to_be_right():
    batch, labels = make_batch(LENGTHS), torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]])
    model = make(RNNSentForSequenceClassification)
    with pytest.raises(ValueError, match="must be class indices .* got torch.int64 of shape"):
        model(**batch, labels=labels)
    assert model.config.problem_type is None
    model = make(RNNSentForSequenceClassification, problem_type="multi_label_classification")
    expected = nn.functional.binary_cross_entropy_with_logits(model(**batch).logits, labels.float())
    torch.testing.assert_close(model(**batch, labels=labels).loss, expected)


@pytest.mark.parametrize("pooling", ["last", "max", "mean", "max_mean", "attention"])
@pytest.mark.parametrize("cell_type", ["lstm", "gru"])
def test_a_state_in_another_type_is_read_on(cell_type, pooling):
    whole = make(RNNSentForSequenceClassification, cell_type=cell_type, pooling=pooling)
    batch = make_batch([6, 4, 5, 3])
    state = whole(**batch, use_cache=True).state
    for lengths in (LENGTHS, [9, 9, 9, 9]):
        expected = whole(**make_batch(lengths), state=state).logits
        half = make(RNNSentForSequenceClassification, cell_type=cell_type, pooling=pooling).bfloat16()
        logits = half(**make_batch(lengths), state=state).logits
        assert logits.dtype == torch.bfloat16
        torch.testing.assert_close(logits.float(), expected, atol=0.03, rtol=0.03)


def test_autocast_takes_a_head_of_another_type_than_the_layers():
    model = make(RNNSentForSequenceClassification, pooling="max_mean", bidirectional=True)
    batch, labels = make_batch(LENGTHS), torch.tensor([0, 1, 1, 0])
    expected = model(**batch).logits
    model.rnnsent.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        output = model.train()(**batch, labels=labels)
    output.loss.backward()
    assert output.logits.dtype == torch.float32
    torch.testing.assert_close(output.logits, expected, atol=0.03, rtol=0.03)


def test_a_language_model_of_two_directions_reads_no_pieces():
    model = make(RNNSentForCausalLM, bidirectional=True)
    batch = make_batch([5, 5])
    state = model(**batch, use_cache=True).state
    with pytest.raises(ValueError, match="`state` needs `bidirectional=False`"):
        model(**batch, state=state, labels=batch["input_ids"])


def test_a_classifiers_temperature_is_not_one_to_draw_words_at(tmp_path):
    make(RNNSentForSequenceClassification, temperature=1.7).save_pretrained(tmp_path / "classifier")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "classifier")
    assert model.config.temperature == 1.7 and model.generation_config.temperature in (None, 1.0)
    model.generation_config.temperature, model.generation_config.do_sample = 0.6, True
    model.save_pretrained(tmp_path / "language")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "language").generation_config.temperature == 0.6


def test_scripts_settings_of_other_language_models_load_too(tmp_path):
    make(RNNSentForCausalLM).save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path, use_cache=False)
    RNNSentForCausalLM.from_pretrained(tmp_path, use_cache=False)


def test_smoothed_labels_of_a_language_model_are_the_next_words(tmp_path):
    model = make(RNNSentForCausalLM)
    ids = make_batch([7, 7])["input_ids"]
    arguments = TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, report_to="none")
    loss = Trainer(model, arguments).compute_loss(model, {"input_ids": ids, "labels": ids})
    expected = nn.functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    smooth = -model(ids).logits[:, :-1].log_softmax(dim=-1).mean()
    torch.testing.assert_close(loss, 0.9 * expected + 0.1 * smooth)


def test_classes_of_tokens_are_in_no_unit_of_values():
    settings = {"num_labels": 3, "problem_type": "regression", "value_scale": 20.0, "value_mean": 1980.0}
    batch = make_batch(LENGTHS)
    model, plain = (make(RNNSentForTokenClassification, **given) for given in (settings, {"num_labels": 3}))
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(**batch).logits, plain(**batch).logits)


def test_a_default_device_is_nobodys_but_the_scripts():
    model = make(RNNSentForSequenceClassification, pooling="max_mean", embedding_dropout=0.1, ngram_order=2).train()
    batch, labels = make_batch(LENGTHS), torch.tensor([0, 1, 1, 0])
    with torch.device("meta"):  # as of a script that has a GPU, and this model on the CPU
        output = model(**batch, labels=labels)
        output.loss.backward()
        answers = model.eval()(**batch, use_cache=True)
        model(**batch, state=answers.state)
    assert math.isfinite(output.loss) and torch.isfinite(answers.logits).all()


def test_what_stands_in_the_place_of_the_output_layer_is_trained():
    """The sampled softmax, which reads weights alone, would leave out what a layer does beside them."""

    class Adapted(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer, self.weight, self.shift = layer, layer.weight, nn.Parameter(torch.zeros(layer.out_features))

        def forward(self, states):
            return self.layer(states) + self.shift

    model = make(RNNSentForCausalLM, sampled_softmax_size=5).train()
    model.lm_head = Adapted(model.lm_head)
    batch = make_batch([6, 4])
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert model.lm_head.shift.grad.abs().sum() > 0
