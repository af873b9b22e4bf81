"""Measures, and explanations of an answer, as people and programs read them: figures, coloured text, columns, JSON."""

import json
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .explaining import Explanation

_RESET = "\033[0m"
# The page's colours, which people who do not tell red from green can tell apart.
_FOR, _AGAINST = (239, 68, 68), (167, 139, 250)


def prepare_output(line_buffering: bool = False):
    """
    Lets standard output take every text: a file or pipe as UTF-8, as texts are read, a terminal with escapes for what
    it has no sign for. Where it or standard error is closed, what is written there goes nowhere.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (until the program ends)
    if not hasattr(sys.stdout, "reconfigure"):  # a notebook's, which needs nothing of it
        return
    if sys.stdout.isatty():
        sys.stdout.reconfigure(errors="backslashreplace")
    else:
        sys.stdout.reconfigure(encoding="utf-8", line_buffering=line_buffering)


def figures(value: float) -> str:
    """A measure to four places, or to three digits where that would be a row of zeros."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.3g}"


def strengths(explanation: "Explanation") -> list[float]:
    """Contributions from -1, most against the label, to 1, most for it."""
    most = max((abs(value) for value in explanation.contributions), default=0) or 1
    return [float(value) / most for value in explanation.contributions]


def in_colours(explanation: "Explanation") -> str:
    """The text for a terminal: red behind words that speak for the label, violet behind those against it."""
    score = format(explanation.score, ".1%" if explanation.unit == "probability" else ".6g")
    parts, end = [f"{explanation.label} {score}  "], 0
    for (start, stop), strength in zip(explanation.spans, strengths(explanation)):
        word = explanation.text[start:stop]
        colour = _FOR if strength > 0 else _AGAINST
        mixed = ";".join(str(round(255 + (part - 255) * abs(strength))) for part in colour)
        parts.append(explanation.text[end:start])
        parts.append(f"\033[30;48;2;{mixed}m{word}{_RESET}" if abs(strength) > 0.05 else word)
        end = stop
    return "".join((*parts, explanation.text[end:]))


def in_columns(explanation: "Explanation") -> str:
    """A line a word: its contribution and, where they were computed, the other measures, with their units."""
    if not explanation.spans:
        return "(no words)"
    contributed, places, more_places = "log-odds", ".3f", ".4f"
    if explanation.unit == "value":  # of any size
        contributed, places, more_places = "value", ".4g", ".4g"
    columns = {
        f"contribution ({contributed})": (explanation.contributions, f"+{places}"),
        f"left out ({explanation.unit})": (explanation.changes, f"+{more_places}"),
        f"read so far ({explanation.unit})": (explanation.reading, more_places),
    }
    columns = {name: column for name, column in columns.items() if column[0] is not None}
    lines = ["  ".join(columns) + "  word"]
    for place, word in enumerate(explanation.words):
        cells = (format(values[place], form).rjust(len(name)) for name, (values, form) in columns.items())
        lines.append("  ".join(cells) + f"  {word}")
    return "\n".join(lines)


def as_json(explanation: "Explanation") -> str:
    """One JSON object: the answer and a list of words with their places and measures."""

    def plain(number: float) -> float:  # as `rnnsent predict` writes it
        return float(f"{number:.7g}") if explanation.unit == "value" else round(float(number), 6)

    measures = {"contribution": explanation.contributions, "change": explanation.changes, "score": explanation.reading}
    words = [
        {
            "word": word,
            "start": start,
            "end": end,
            **{name: plain(values[place]) for name, values in measures.items() if values is not None},
        }
        for place, (word, (start, end)) in enumerate(zip(explanation.words, explanation.spans))
    ]
    answer = {"text": explanation.text, "label": explanation.label, "score": plain(explanation.score)}
    return json.dumps({**answer, "words": words}, ensure_ascii=False)


def wilson_margins(right: int, number: int) -> tuple[float, float]:
    """
    How far the 95 % interval of an accuracy, `right` of `number`, goes down and up: Wilson's, which stays within 0 and
    1 and is not empty where all answers are right.
    """
    from scipy.stats import binomtest  # only pictures need it

    interval, accuracy = binomtest(right, number).proportion_ci(method="wilson"), right / number
    return max(0.0, accuracy - interval.low), max(0.0, interval.high - accuracy)
