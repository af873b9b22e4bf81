"""
`train.py` with `book.yaml` against the chapter's own kind of training loop, on the same reviews and model:

    python benchmarks/training.py [--steps 200] [--rounds 5]

The loop is chapter 15's, written out: tokenizing in the collate function, random batches of 32, packed sequences
through `nn.LSTM`, binary cross-entropy on a sigmoid, dense Adam. Ours is `RNNSentTrainer` as `train.py` sets it up.
Both run in turns in one process. Also printed: where a step of ours goes.
"""

import argparse
import re
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path

import torch
from measuring import describe_machine, ratio, show, summary, write
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader
from transformers import set_seed

from modeling_rnnsent import RNNSentConfig, RNNSentForSequenceClassification
from modeling_rnnsent.arguments import parse_run
from modeling_rnnsent.data import load_labeled_texts, tokenize
from modeling_rnnsent.padding import PaddingCollator
from modeling_rnnsent.tokenization import build_tokenizer
from modeling_rnnsent.training import RNNSentTrainer

RECIPE = Path(__file__).parents[1] / "configuration" / "book.yaml"


class ChapterModel(nn.Module):
    """Embedding, packed LSTM, its final state, ReLU layer, sigmoid."""

    def __init__(self, config: RNNSentConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=0)
        self.rnn = nn.LSTM(config.embedding_size, config.hidden_size, batch_first=True)
        self.hidden = nn.Linear(config.hidden_size, config.classifier_hidden_size)
        self.output = nn.Linear(config.classifier_hidden_size, 1)

    def forward(self, ids, lengths):
        packed = pack_padded_sequence(self.embedding(ids), lengths, enforce_sorted=False, batch_first=True)
        _, (final, _) = self.rnn(packed)
        return torch.sigmoid(self.output(torch.relu(self.hidden(final[-1])))).squeeze(1)


class ChapterLoop:
    """Runs some more batches at every call and counts their tokens."""

    def __init__(self, reviews, vocabulary: dict[str, int], config: RNNSentConfig):
        self.vocabulary = vocabulary
        self.model = ChapterModel(config)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.001)
        self.loss = nn.BCELoss()
        rows = list(zip(reviews["text"], reviews["label"]))
        batches = DataLoader(rows, batch_size=32, shuffle=True, collate_fn=self.collate)
        self.batches = chain.from_iterable(repeat(batches))  # epoch after epoch

    def collate(self, rows):
        ids = []
        for text, _ in rows:
            text = re.sub("<[^>]*>", "", text).lower()
            emoticons = re.findall("[:;=]-?[)(dp]", text)
            words = re.sub(r"\W+", " ", text) + " " + " ".join(emoticons).replace("-", "")
            ids.append(torch.tensor([self.vocabulary.get(word, 1) for word in words.split()]))
        lengths = torch.tensor([len(row) for row in ids])
        labels = torch.tensor([float(label) for _, label in rows])
        return pad_sequence(ids, batch_first=True), labels, lengths

    def run(self, steps: int) -> int:
        tokens = 0
        for _ in range(steps):
            ids, labels, lengths = next(self.batches)
            self.optimizer.zero_grad()
            self.loss(self.model(ids, lengths), labels).backward()
            self.optimizer.step()
            tokens += int(lengths.sum())
        return tokens


class TimedTrainer(RNNSentTrainer):
    """Notes what each part of a step takes."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seconds: dict[str, float] = defaultdict(float)
        self.tokens = 0

    @contextmanager
    def part(self, name: str):
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def get_batch_samples(self, *args, **kwargs):
        with self.part("data"):
            return super().get_batch_samples(*args, **kwargs)

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.tokens += int(inputs["attention_mask"].sum())
        with self.part("forward"):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        if not hasattr(optimizer, "timed"):
            optimizer.timed = True
            step, backward = optimizer.step, self.accelerator.backward
            optimizer.step = lambda *args, **kwargs: self._call("optimizer", step, *args, **kwargs)
            self.accelerator.backward = lambda *args, **kwargs: self._call("backward", backward, *args, **kwargs)
        return optimizer

    def _call(self, name, function, *args, **kwargs):
        with self.part(name):
            return function(*args, **kwargs)

    def _get_grad_norm(self, *args, **kwargs):
        with self.part("gradient norm (for the log)"):
            return super()._get_grad_norm(*args, **kwargs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="steps of ours in a round; the loop runs a twentieth")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dataset_name", default="movie-reviews")
    arguments = parser.parse_args()
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--dataset_name {arguments.dataset_name} --output_dir {folder}/run --max_steps {arguments.steps}"
        flags += " --eval_strategy no --save_strategy no --load_best_model_at_end False --disable_tqdm True"
        run = parse_run([str(RECIPE), *flags.split()])
        texts = load_labeled_texts(run.data)
        tokenizer = build_tokenizer(texts.texts(), **run.data.tokenizer_options)
        splits = tokenize(texts.splits, tokenizer, run.data.max_length)
        given = {name: value for name, value in vars(run.model).items() if value is not None}
        config = RNNSentConfig(vocab_size=len(tokenizer), **given, **texts.labels.config)
        set_seed(1)
        loop = ChapterLoop(texts.splits["train"], tokenizer.get_vocab(), config)
        loop.run(1)
        model = RNNSentForSequenceClassification(config)
        parts, rates = defaultdict(list), {"loop": [], "ours": []}
        for turn in range(arguments.rounds):
            start = time.perf_counter()
            tokens = loop.run(max(1, arguments.steps // 20))
            rates["loop"].append(tokens / (time.perf_counter() - start))
            run.training.seed = turn
            trainer = TimedTrainer(
                model=model,
                args=run.training,
                train_dataset=splits["train"],
                data_collator=PaddingCollator(tokenizer.pad_token_id),
            )
            seconds = trainer.train().metrics["train_runtime"]
            rates["ours"].append(trainer.tokens / seconds)
            trainer.seconds["Trainer and the rest"] = seconds - sum(trainer.seconds.values())
            for name, value in trainer.seconds.items():
                parts[name].append((value / arguments.steps, value / seconds))
    epoch = sum(splits["train"]["length"])
    rows = [
        {
            "side": name,
            "ktokens/s": summary(values)["median"] / 1e3,
            "least": min(values) / 1e3,
            "most": max(values) / 1e3,
            "epoch, s": epoch / summary(values)["median"],
        }
        for name, values in rates.items()
    ]
    show(f"{len(splits['train']):,} reviews, {epoch:,} tokens an epoch: {machine}", rows)
    times = ratio(rates["loop"], rates["ours"])
    print(f"ours / loop: {times:.1f}x (median of {arguments.rounds} rounds)")
    shares = [
        {
            "part of a step": name,
            "ms": 1e3 * summary([value for value, _ in values])["median"],
            "%": 100 * summary([share for _, share in values])["median"],
        }
        for name, values in parts.items()
    ]
    show("Where our time goes", shares)
    how = {"ours / loop": times, "rounds": arguments.rounds, "steps": arguments.steps}
    write("training", machine, [*rows, how, *shares])


if __name__ == "__main__":
    main()
