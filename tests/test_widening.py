"""More units for a language model: the logits of the narrow one at first, and what they are good for is learned."""

import pytest
import torch
from conftest import SMALL, train
from test_training import fails, read

from modeling_rnnsent import RNNSentConfig, RNNSentForCausalLM
from modeling_rnnsent.widening import widen

SIZES = {"vocab_size": 50, "embedding_size": 6, "hidden_size": 10}


def make_model(**fields) -> RNNSentForCausalLM:
    torch.manual_seed(0)
    return RNNSentForCausalLM(RNNSentConfig(**SIZES | fields)).eval()


@pytest.mark.parametrize(
    "fields",
    [
        {"cell_type": "lstm", "bidirectional": True, "tie_word_embeddings": True},
        {"cell_type": "gru", "num_hidden_layers": 3},
        {"cell_type": "rnn", "num_hidden_layers": 2, "input_encoding": "one_hot", "tie_word_embeddings": False},
        {"cell_type": "rnn", "recurrence": "output"},
        {"embedding_size": 10, "tie_word_embeddings": True, "bidirectional": True},  # without a projection
        {"embedding_size": 20, "tie_word_embeddings": False},
    ],
)
def test_a_wider_model_has_the_same_logits_and_uses_all_of_its_units(fields):
    model = make_model(**fields)
    input_ids = torch.randint(2, 50, (3, 12))
    attention_mask = torch.arange(12) < torch.tensor([[12], [7], [1]])
    labels = input_ids.masked_fill(~attention_mask, -100)
    expected = model(input_ids, attention_mask=attention_mask, labels=labels)
    wide = widen(model, 17)
    assert wide.config.hidden_size == 17 and model.config.hidden_size == 10
    found = wide(input_ids, attention_mask=attention_mask, labels=labels)
    torch.testing.assert_close(found.logits[attention_mask], expected.logits[attention_mask], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-6)
    before = {name: parameter.detach().clone() for name, parameter in wide.named_parameters()}
    optimizer = torch.optim.Adam(wide.parameters(), lr=0.01)
    for _ in range(2):  # the first step makes what reads the new units, the second what they read
        optimizer.zero_grad()
        wide(input_ids, attention_mask=attention_mask, labels=labels).loss.backward()
        optimizer.step()
    for name, parameter in wide.named_parameters():
        if "recurrence" in name and "weight" in name and "ih_l0" not in name:
            assert (parameter != before[name]).float().mean() > 0.99, name


def test_a_model_is_not_widened_to_fewer_units_or_out_of_its_projection():
    with pytest.raises(ValueError, match="more than the 10 that the model has, got 10"):
        widen(make_model(), 10)
    with pytest.raises(ValueError, match="other than the embedding's 12, got 12"):
        widen(make_model(embedding_size=12, tie_word_embeddings=True), 12)


def test_a_run_starts_from_a_narrower_language_model(reviews, tmp_path):
    flags = [f"--train_file={reviews / 'train.csv'}", "--validation_size=0.2", "--bidirectional", *SMALL]
    flags += ["--embedding_size=8", "--task=language-modeling"]
    train(*flags, "--hidden_size=8", "--num_train_epochs=1", f"--output_dir={tmp_path / 'narrow'}")
    start = [*flags, f"--model_name_or_path={tmp_path / 'narrow'}"]
    # With no step to speak of, the wide one is as good as the narrow one.
    train(*start, "--hidden_size=24", "--learning_rate=1e-12", "--max_steps=1", f"--output_dir={tmp_path / 'wide'}")
    assert RNNSentForCausalLM.from_pretrained(tmp_path / "wide").config.hidden_size == 24
    losses = [read(tmp_path / name / "eval_results.json")["eval_loss"] for name in ("narrow", "wide")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert "does not fit the settings" in fails(*start, "--hidden_size=4", f"--output_dir={tmp_path / 'fewer'}")
    classifier = [flag for flag in start if "task" not in flag]
    assert "does not fit the settings" in fails(*classifier, "--hidden_size=24", f"--output_dir={tmp_path / 'other'}")
