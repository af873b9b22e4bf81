"""
The recurrent layer against `torch.nn`'s on packed sequences and on the padded batch:

    python benchmarks/recurrence.py [--full] [--only TEXT]

Every combination, `--full`, takes hours: each row is written when it is measured, and a row that this machine has
already is not measured again.

One training step is forward and backward to the input and all weights; one inference pass is forward without
gradients. Every call takes another batch, the same for the three. Tokens are counted without padding. The padded
`torch.nn` is not right for two directions (the one from the end starts in padding) and is there to show what the padded
work takes.
"""

import argparse
import itertools
from collections.abc import Callable

import torch
from measuring import (
    alternate,
    describe_machine,
    peak_memory,
    product_peak,
    ratio,
    read,
    review_lengths,
    show,
    summary,
    write,
)
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from modeling_rnnsent.recurrence_rnnsent import NUM_GATES, RNNSentRecurrence

SIZES = ((20, 64), (128, 128), (300, 256), (300, 512))
LENGTHS = ("equal", "about equal", "random")


def default_rows() -> list[tuple]:
    """Rows `(cell, directions, sizes, batch, lengths)` that end within 15 minutes."""
    rows = list(itertools.product(("lstm", "gru", "rnn"), (1,), SIZES[:2], (32, 64), LENGTHS))
    rows += itertools.product(("lstm", "gru", "rnn"), (1,), SIZES[:2], (1,), ("equal",))
    rows += itertools.product(("lstm", "gru"), (2,), SIZES[1:2], (32, 64), ("random",))
    rows += itertools.product(("lstm", "gru"), (1,), SIZES[:2], (256,), ("random",))
    rows += itertools.product(("lstm", "gru", "rnn"), (1,), SIZES[2:3], (32,), ("about equal", "random"))
    return rows


def full_rows() -> list[tuple]:
    return list(itertools.product(("lstm", "gru", "rnn"), (1, 2), SIZES, (1, 32, 64, 256), LENGTHS))


def draw_lengths(kind: str, batch: int, pool: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if kind == "equal":
        return torch.full((batch,), int(pool.float().mean()))
    if kind == "about equal":  # neighbours in a pool of 50 batches sorted by length, as the Trainer's batches are
        drawn = pool[torch.randint(len(pool), (50 * batch,), generator=generator)].sort().values
        return drawn[25 * batch : 26 * batch]
    return pool[torch.randint(len(pool), (batch,), generator=generator)]


class Sides:
    """The three layers with the same weights. Each call of a side takes the next batch: new lengths, as in training."""

    def __init__(self, cell: str, directions: int, sizes: tuple[int, int], batches: list[torch.Tensor]):
        bidirectional = directions == 2
        self.reference = getattr(nn, cell.upper())(*sizes, batch_first=True, bidirectional=bidirectional)
        self.engine = RNNSentRecurrence(*sizes, cell_type=cell, bidirectional=bidirectional)
        self.engine.load_state_dict(self.reference.state_dict())
        self.batches = []
        for lengths in batches:
            input = torch.randn(len(lengths), int(lengths.max()), sizes[0], requires_grad=True)
            mask = (torch.arange(input.shape[1]) < lengths.unsqueeze(1)).unsqueeze(-1)
            gradient = torch.randn(len(lengths), input.shape[1], sizes[1] * directions) * mask
            self.batches.append((input, lengths, gradient))

    def ours(self, input: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        given = None if bool((lengths == input.shape[1]).all()) else lengths
        return self.engine(input, given, return_state=False)[0][-1]

    def packed(self, input: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        sequences = pack_padded_sequence(input, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.reference(sequences)[0], batch_first=True)[0]

    def padded(self, input: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.reference(input)[0]

    def training(self, name: str) -> Callable[[], object]:
        """A call that is one training step of a side."""
        forward, batches = getattr(self, name), itertools.cycle(self.batches)
        parameters = list((self.engine if name == "ours" else self.reference).parameters())

        def step():
            input, lengths, gradient = next(batches)
            torch.autograd.grad(forward(input, lengths), [input, *parameters], gradient)

        return step

    def inference(self, name: str) -> Callable[[], object]:
        """A call that is one pass of a side without gradients."""
        forward, batches = getattr(self, name), itertools.cycle(self.batches)

        @torch.no_grad()
        def run():
            forward(*next(batches)[:2])

        return run


def measure(row: tuple, pool: torch.Tensor, peak: float, repeats: int) -> list[dict]:
    cell, directions, sizes, batch, kind = row
    generator = torch.Generator().manual_seed(0)
    # One more than the repeats: that of the first call, which does not count.
    batches = [draw_lengths(kind, batch, pool, generator) for _ in range(1 if kind == "equal" else repeats + 1)]
    sides = Sides(cell, directions, sizes, batches)
    input, lengths, _ = sides.batches[0]
    torch.testing.assert_close(sides.ours(input, lengths), sides.packed(input, lengths), atol=1e-4, rtol=1e-4)
    results = []
    for mode, make, factor in (("training", sides.training, 3), ("inference", sides.inference, 1)):
        calls = {name: make(name) for name in ("ours", "packed", "padded")}
        seconds = alternate(calls, repeats, most_seconds=6)
        took = len(seconds["ours"])
        tokens = sum(int(batches[turn % len(batches)].sum()) for turn in range(1, took + 1)) / sum(seconds["ours"])
        flop = 2 * NUM_GATES[cell] * sizes[1] * sum(sizes) * directions * tokens
        results.append(
            {
                "mode": mode,
                "cell": cell,
                "directions": directions,
                "sizes": f"{sizes[0]}->{sizes[1]}",
                "batch": batch,
                "lengths": kind,
                "ms": 1e3 * summary(seconds["ours"])["median"],
                "ms, packed": 1e3 * summary(seconds["packed"])["median"],
                "ms, padded": 1e3 * summary(seconds["padded"])["median"],
                "packed / ours": ratio(seconds["ours"], seconds["packed"]),
                "padded / ours": ratio(seconds["ours"], seconds["padded"]),
                "ktokens/s": tokens / 1e3,
                "% of peak": 100 * factor * flop / 1e9 / peak,
                "MiB": peak_memory(make("ours")),
                "MiB, padded": peak_memory(make("padded")),
                "seconds": {name: summary(values) for name, values in seconds.items()},
            }
        )
    return results


def describe(row: dict) -> tuple:
    """`(cell, directions, sizes, batch, lengths)` of a row of results."""
    return row["cell"], row["directions"], tuple(map(int, row["sizes"].split("->"))), row["batch"], row["lengths"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--full",
        action="store_true",
        help="every combination (hours: packed sequences are slow), going on where it was",
    )
    parser.add_argument("--only", default="", help="only rows whose description holds this text, e.g. 'gru 1'")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    machine, pool = describe_machine(), review_lengths()
    torch.manual_seed(0)
    rows = read("recurrence_full", machine) if arguments.full else []
    measured = {describe(row) for row in rows}
    for row in full_rows() if arguments.full else default_rows():
        if arguments.only in " ".join(map(str, row)) and row not in measured:
            peak = product_peak()
            rows += measure(row, pool, peak, arguments.repeats)
            rows[-1]["peak GFLOP/s"] = rows[-2]["peak GFLOP/s"] = peak
            brief = ("ms", "packed / ours", "padded / ours")
            print(
                *row, *(f"{r['mode']}: " + ", ".join(f"{k} {r[k]:.3g}" for k in brief) for r in rows[-2:]), flush=True
            )
            if arguments.full:
                write("recurrence_full", machine, rows, quiet=True)
    for mode in ("training", "inference"):
        chosen = [{k: v for k, v in r.items() if k not in ("mode", "seconds")} for r in rows if r["mode"] == mode]
        show(f"{mode}: {machine}", chosen)
    if arguments.full or not arguments.only:  # a part must not take the place of the whole
        write("recurrence" + ("_full" if arguments.full else ""), machine, rows)


if __name__ == "__main__":
    main()
