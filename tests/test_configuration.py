"""RNNSentConfig: documented defaults, validation that names field, value and what is allowed, and what it saves."""

import ast
import json
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from modeling_rnnsent import RNNSentConfig, RNNSentForSequenceClassification, RNNSentModel


def test_defaults_are_the_documented_ones():
    documented = re.findall(r"^        (\w+) \(.*?(?:, defaults to (.*))?\):$", RNNSentConfig.__doc__, flags=re.M)
    values = {name: ast.literal_eval(value.strip("`")) if value else None for name, value in documented}
    config = RNNSentConfig()
    assert len(values) > 30 and {name: getattr(config, name) for name in values} == values
    assert config.model_type == "rnnsent"


@pytest.mark.parametrize("deviation", [0.1, 1.0])
def test_weights_at_the_start(deviation):
    torch.manual_seed(0)
    settings = {"vocab_size": 3000, "hidden_size": 50, "initializer_range": deviation, "bidirectional": True}
    model = RNNSentForSequenceClassification(RNNSentConfig(**settings))
    embeddings = model.get_input_embeddings().weight.detach()
    assert embeddings[1:].std() == pytest.approx(deviation, rel=0.02) and not embeddings[0].any()
    for name, weight in (*model.rnnsent.recurrence.named_parameters(), ("out", model.classifier.out_proj.weight)):
        bound = weight.shape[1] ** -0.5 if name == "out" else 50**-0.5  # as torch.nn's layers draw them
        assert 0.9 * bound < weight.abs().max() <= bound, name


def test_every_field_is_documented():
    documented = re.findall(r"^        (\w+) \(", RNNSentConfig.__doc__, flags=re.M)
    assert documented == list(RNNSentConfig.__annotations__)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("cell_type", "transformer", "'rnn', 'lstm', 'gru'"),
        ("nonlinearity", "gelu", "'tanh', 'relu'"),
        ("recurrence", "cell", "'hidden', 'output'"),
        ("merge_mode", "max", "'concat', 'sum', 'mul', 'mean'"),
        ("pooling", "cls", "'last', 'max', 'mean', 'max_mean', 'attention'"),
        ("input_encoding", "bytes", "'embedding', 'one_hot'"),
        ("classifier_head", "tanh", "'softmax', 'sigmoid'"),
        ("bidirectional", "yes", "bool"),
        ("hidden_size", 0, "at least 1"),
        ("hidden_size", 1.5, "int"),
        ("num_hidden_layers", -1, "at least 1"),
        ("embedding_size", 0, "at least 1"),
        ("vocab_size", 0, "at least 1"),
        ("classifier_hidden_size", -1, "0 or more"),
        ("word_dropout", 1.0, "below 1"),
        ("embedding_dropout", -0.1, "at least 0"),
        ("weight_dropout", float("nan"), "at least 0"),
        ("classifier_dropout", "0.5", "float"),
        ("hidden_dropout", 0.1, "num_hidden_layers"),
        ("pooling_dropout", 0.1, "pooling"),
        ("pad_token_id", 30000, "0 to 29999"),
        ("pad_token_id", -1, "0 to 29999"),
        ("initializer_range", -1.0, "at least 0"),
        ("problem_type", "classification", "single_label_classification"),
    ],
)
def test_error_names_field_value_and_what_is_allowed(field, value, allowed):
    with pytest.raises(StrictDataclassError) as error:
        RNNSentConfig(**{field: value})
    message = str(error.value)
    assert field in message and str(value) in message and allowed in message


@pytest.mark.parametrize(("field", "value"), [("temperature", 0), ("hidden_dropout", 0.5), ("pad_token_id", 99)])
def test_what_a_model_is_loaded_with_is_checked_too(tmp_path, field, value):
    RNNSentForSequenceClassification(RNNSentConfig(vocab_size=50)).save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match=f"`{field}`.*{value}"):
        RNNSentForSequenceClassification.from_pretrained(tmp_path, **{field: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"recurrence": "output", "cell_type": "lstm"},
        {"nonlinearity": "relu", "cell_type": "gru"},
        {"classifier_head": "sigmoid", "num_labels": 3},
        {"classifier_head": "sigmoid", "problem_type": "regression"},
        {"input_encoding": "one_hot", "embedding_dropout": 0.1},
    ],
)
def test_fields_that_exclude_each_other(settings):
    with pytest.raises(StrictDataclassError):
        RNNSentConfig(**settings)


def test_saves_every_auto_class_and_reads_back(tmp_path):
    config = RNNSentConfig(vocab_size=50, cell_type="gru", pad_token_id=7, num_labels=3)
    config.save_pretrained(tmp_path / "alone")  # without the models' code
    assert set(json.loads((tmp_path / "alone" / "config.json").read_text())["auto_map"]) == {"AutoConfig"}
    RNNSentModel(config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert set(saved["auto_map"]) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForSequenceClassification",
        "AutoModelForTokenClassification",
        "AutoModelForCausalLM",
    }
    loaded = RNNSentConfig.from_pretrained(tmp_path)
    assert (loaded.vocab_size, loaded.cell_type, loaded.pad_token_id, loaded.num_labels) == (50, "gru", 7, 3)
