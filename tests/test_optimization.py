"""The lazily updated AdamW against `torch.optim.AdamW` on dense gradients."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from test_distributed import free_port
from test_recovery import Stop
from torch import nn
from transformers import TrainerCallback, set_seed

from modeling_rnnsent import RNNSentConfig, RNNSentForSequenceClassification
from modeling_rnnsent.arguments import RNNSentTrainingArguments
from modeling_rnnsent.optimization import LazyAdamW, clip_gradients, lazy_embedding
from modeling_rnnsent.padding import PaddingCollator
from modeling_rnnsent.training import RNNSentTrainer

ROOT = Path(__file__).parents[1]
VOCABULARY = 200


class Bag(nn.Module):
    """An embedding whose mean is classified."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 6, padding_idx=0)
        self.linear = nn.Linear(6, 3)

    def forward(self, ids):
        return self.linear(torch.tanh(self.embedding(ids)).mean(1))


def batches(number, seed=0):
    """Zipf-like ids: a few words in every batch, most of them once in a hundred batches."""
    generator = torch.Generator().manual_seed(seed)
    weights = 1 / torch.arange(1, VOCABULARY + 1).float()
    for _ in range(number):
        ids = torch.multinomial(weights, 4 * 5, replacement=True, generator=generator).view(4, 5)
        yield ids, torch.randint(3, (4,), generator=generator)


def train(model, optimizer, data, schedule=None, max_norm=None):
    norms = []
    for ids, labels in data:
        nn.functional.cross_entropy(model(ids), labels).backward()
        if max_norm is not None:
            norms.append(clip_gradients(list(model.parameters()), max_norm))
        optimizer.step()
        optimizer.zero_grad()
        if schedule is not None:
            schedule.step()
    return norms


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equals_dense_adamw(weight_decay, dtype):
    torch.manual_seed(0)
    dense = Bag().to(dtype)
    lazy = copy.deepcopy(dense)
    settings = {"lr": 0.01, "weight_decay": weight_decay}
    expected, optimizer = torch.optim.AdamW(dense.parameters(), **settings), LazyAdamW(lazy.parameters(), **settings)
    handle = lazy_embedding(lazy.embedding, optimizer)
    for one, model in ((expected, dense), (optimizer, lazy)):
        train(model, one, batches(1500), torch.optim.lr_scheduler.LinearLR(one, 1.0, 0.1, total_iters=1500))
    ids = torch.arange(VOCABULARY).view(1, -1)
    lazy.eval()
    tolerance = 1e-4  # of weights of about 1; see the note on eps
    torch.testing.assert_close(lazy(ids), dense(ids), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        dict(lazy.named_parameters()), dict(dense.named_parameters()), rtol=tolerance, atol=tolerance
    )
    ours, theirs = optimizer.state_dict()["state"], expected.state_dict()["state"]
    for index, state in theirs.items():
        torch.testing.assert_close(ours[index], state, rtol=tolerance, atol=tolerance)
    handle.remove()
    lazy.train()(ids).sum().backward()
    assert not lazy.embedding.weight.grad.is_sparse


def test_averages_under_which_a_row_never_rests_are_refused():
    for betas in ((0.9, 0.81), (0.95, 0.9)):
        with pytest.raises(ValueError, match="beta1 below the square root of beta2, got betas"):
            LazyAdamW(Bag().parameters(), betas=betas)


def test_only_rows_that_were_read_move_until_settled():
    torch.manual_seed(0)
    model = Bag()
    optimizer = LazyAdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    lazy_embedding(model.embedding, optimizer)
    train(model, optimizer, [(torch.tensor([[3, 4]]), torch.tensor([1]))])
    after_one = model.embedding.weight.detach().clone()
    train(model, optimizer, [(torch.tensor([[4, 5]]), torch.tensor([1]))])
    changed = (model.embedding.weight != after_one).any(dim=1).nonzero().flatten().tolist()
    assert changed == [4, 5]
    optimizer.settle()
    changed = (model.embedding.weight != after_one).any(dim=1).nonzero().flatten().tolist()
    assert changed == [3, 4, 5]


def test_goes_on_from_its_state_dict():
    torch.manual_seed(0)
    model = Bag()
    optimizer = LazyAdamW(model.parameters())
    lazy_embedding(model.embedding, optimizer)
    train(model, optimizer, batches(40))
    state = copy.deepcopy(optimizer.state_dict())
    other = Bag()
    other.load_state_dict(model.state_dict())
    resumed = LazyAdamW(other.parameters())
    lazy_embedding(other.embedding, resumed)
    resumed.load_state_dict(state)
    for one, net in ((optimizer, model), (resumed, other)):
        train(net, one, batches(40, seed=1))
        one.settle()
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("max_norm", [0.05, float("inf")])
def test_clips_sparse_and_dense_gradients_together(max_norm):
    torch.manual_seed(0)
    dense = Bag()
    lazy = copy.deepcopy(dense)
    lazy.embedding.sparse = True
    ids, labels = next(batches(1))
    for model in (dense, lazy):
        nn.functional.cross_entropy(model(ids), labels).backward()
    expected = nn.utils.clip_grad_norm_(dense.parameters(), max_norm)
    torch.testing.assert_close(clip_gradients(list(lazy.parameters()), max_norm), expected)
    torch.testing.assert_close(lazy.embedding.weight.grad.to_dense(), dense.embedding.weight.grad)
    torch.testing.assert_close(lazy.linear.weight.grad, dense.linear.weight.grad)


def random_texts(number: int) -> Dataset:
    generator = np.random.default_rng(0)
    rows = [{"input_ids": generator.integers(1, 300, 7), "labels": generator.integers(2)} for _ in range(number)]
    return Dataset.from_list(rows)


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.1])
def test_trainer_gives_the_same_model_with_and_without(tmp_path, monkeypatch, max_grad_norm):
    rows = random_texts(64)
    weights = []
    for elements in (1, 10**9):
        monkeypatch.setattr("modeling_rnnsent.training.LAZY_ELEMENTS", elements)
        set_seed(0)
        model = RNNSentForSequenceClassification(RNNSentConfig(vocab_size=300, embedding_size=8, hidden_size=6))
        arguments = RNNSentTrainingArguments(
            output_dir=str(tmp_path / str(elements)),
            num_train_epochs=3,
            per_device_train_batch_size=4,
            learning_rate=0.01,
            adam_epsilon=1e-12,  # far below the gradients, beside which the two may differ in the third digit
            max_grad_norm=max_grad_norm,
            save_steps=10,
            eval_strategy="steps",
            eval_steps=7,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = RNNSentTrainer(
            model, arguments, train_dataset=rows, eval_dataset=rows, data_collator=PaddingCollator(0)
        )
        trainer.train()
        assert (type(trainer.optimizer.optimizer) is LazyAdamW) == (elements == 1)
        arguments.adam_beta2 = 0.8  # for which there is the dense one alone
        assert type(RNNSentTrainer(model, arguments, eval_dataset=rows).create_optimizer()) is not LazyAdamW
        saved = load_file(tmp_path / str(elements) / "checkpoint-40" / "model.safetensors")
        weights.append({**model.state_dict(), **{f"saved {name}": value for name, value in saved.items()}})
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)


@pytest.fixture
def train_lazily(tmp_path, monkeypatch):
    """A function that trains a classifier, rows of whose embedding are updated when they are read; its weights."""
    monkeypatch.setattr("modeling_rnnsent.training.LAZY_ELEMENTS", 1)
    rows = random_texts(40)

    def train(name: str, *callbacks, resume: str | None = None) -> dict[str, torch.Tensor]:
        set_seed(0)
        model = RNNSentForSequenceClassification(RNNSentConfig(vocab_size=300, embedding_size=8, hidden_size=6))
        arguments = RNNSentTrainingArguments(
            output_dir=str(tmp_path / name),
            num_train_epochs=2,
            per_device_train_batch_size=4,
            learning_rate=0.01,
            save_strategy="steps",
            save_steps=7,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = RNNSentTrainer(
            model, arguments, train_dataset=rows, data_collator=PaddingCollator(0), callbacks=list(callbacks)
        )
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / resume))
        assert type(trainer.optimizer.optimizer) is LazyAdamW and trainer.state.global_step == 20
        return model.state_dict()

    return train


def test_a_run_that_goes_on_from_its_checkpoint_ends_the_same(train_lazily):
    whole = train_lazily("whole")
    torch.testing.assert_close(train_lazily("again", resume="whole/checkpoint-7"), whole, rtol=0, atol=0)


def test_a_stopped_run_ends_near_the_same(train_lazily):
    """A checkpoint that the run would not have written makes good what rows lack a little earlier."""
    whole = train_lazily("whole")
    with pytest.raises(KeyboardInterrupt, match="checkpoint-10 is saved"):
        train_lazily("stopped", Stop("on_step_begin", 9))
    torch.testing.assert_close(train_lazily("stopped", resume="stopped/checkpoint-10"), whole, rtol=0, atol=1e-4)


def test_best_model_is_loaded_as_it_was_saved(tmp_path, monkeypatch):
    # Training is stopped between two evaluations, so that rows are behind when the best model is loaded.
    class End(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 10

    monkeypatch.setattr("modeling_rnnsent.training.LAZY_ELEMENTS", 1)
    rows = random_texts(40)
    set_seed(0)
    model = RNNSentForSequenceClassification(RNNSentConfig(vocab_size=300, embedding_size=8, hidden_size=6))
    arguments = RNNSentTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=20,
        per_device_train_batch_size=2,
        eval_strategy="steps",
        eval_steps=7,
        save_strategy="best",
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = RNNSentTrainer(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=PaddingCollator(0),
        callbacks=[End()],
    )
    trainer.train()
    assert type(trainer.optimizer.optimizer) is LazyAdamW and trainer.state.global_step == 10
    saved = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    torch.testing.assert_close(dict(model.state_dict()), saved, rtol=0, atol=0)


TRAINING = """
import sys

import numpy as np
from datasets import Dataset
from transformers import set_seed

import modeling_rnnsent.training as training
from modeling_rnnsent import RNNSentConfig, RNNSentForSequenceClassification
from modeling_rnnsent.arguments import RNNSentTrainingArguments
from modeling_rnnsent.launching import process_group
from modeling_rnnsent.padding import PaddingCollator

training.LAZY_ELEMENTS = int(sys.argv[1])
generator = np.random.default_rng(0)
rows = [{"input_ids": generator.integers(1, 300, 7).tolist(), "labels": int(generator.integers(2))} for _ in range(64)]
set_seed(0)
model = RNNSentForSequenceClassification(RNNSentConfig(vocab_size=300, embedding_size=8, hidden_size=6))
arguments = RNNSentTrainingArguments(
    output_dir=sys.argv[2],
    num_train_epochs=3,
    per_device_train_batch_size=int(sys.argv[3]),
    gradient_accumulation_steps=int(sys.argv[4]),
    learning_rate=0.01,
    adam_epsilon=1e-12,
    max_grad_norm=0.1,
    save_strategy="no",
    report_to=[],
    disable_tqdm=True,
    use_cpu=True,
    num_threads=1,
)


def train():
    trainer = training.RNNSentTrainer(
        model, arguments, train_dataset=Dataset.from_list(rows), data_collator=PaddingCollator(0)
    )
    trainer.train()
    assert trainer.state.global_step == 24, trainer.state.global_step
    trainer.save_final_model()


with process_group():
    train()
"""


@pytest.mark.slow
def test_two_processes_and_accumulation_give_the_model_of_one_dense_process(tmp_path):
    (tmp_path / "training.py").write_text(TRAINING)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    two = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    weights = []
    for name, launcher, elements, batch, accumulated in (
        ("dense", [], 10**9, 8, 1),
        ("lazy", two, 1, 4, 1),
        ("accumulated", two, 1, 2, 2),
    ):
        settings = map(str, (elements, tmp_path / name, batch, accumulated))
        command = [sys.executable, *launcher, str(tmp_path / "training.py"), *settings]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-3, atol=1e-4)
