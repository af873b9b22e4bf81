"""An explanation as people and programs read it: coloured text, columns, JSON."""

import json

from .explaining import Explanation

_RESET = "\033[0m"


def strengths(explanation: Explanation) -> list[float]:
    """Contributions from -1, most against the label, to 1, most for it."""
    most = max((abs(value) for value in explanation.contributions), default=0) or 1
    return [float(value) / most for value in explanation.contributions]


def in_colours(explanation: Explanation) -> str:
    """The text for a terminal: green behind words that speak for the label, red behind those against it."""
    parts, end = [f"{explanation.label} {explanation.score:.1%}  "], 0
    for (start, stop), strength in zip(explanation.spans, strengths(explanation)):
        faded = round(255 * (1 - abs(strength)))
        red, green = (faded, 255) if strength > 0 else (255, faded)
        word = explanation.text[start:stop]
        parts.append(explanation.text[end:start])
        parts.append(f"\033[30;48;2;{red};{green};{faded}m{word}{_RESET}" if abs(strength) > 0.05 else word)
        end = stop
    return "".join((*parts, explanation.text[end:]))


def in_columns(explanation: Explanation) -> str:
    """A line a word: its contribution and, where they were computed, the other measures."""
    columns = {
        "contribution": explanation.contributions,
        "left out": explanation.changes,
        "read so far": explanation.reading,
    }
    columns = {name: values for name, values in columns.items() if values is not None}
    formats = {"contribution": "+12.3f", "left out": "+9.4f", "read so far": "11.4f"}
    lines = ["  ".join(columns) + "  word"]
    for place, word in enumerate(explanation.words):
        lines.append("  ".join(format(values[place], formats[name]) for name, values in columns.items()) + f"  {word}")
    return "\n".join(lines)


def as_json(explanation: Explanation) -> str:
    """One JSON object: the answer and a list of words with their places and measures."""
    measures = {"contribution": explanation.contributions, "change": explanation.changes, "score": explanation.reading}
    words = [
        {
            "word": word,
            "start": start,
            "end": end,
            **{name: round(float(values[place]), 6) for name, values in measures.items() if values is not None},
        }
        for place, (word, (start, end)) in enumerate(zip(explanation.words, explanation.spans))
    ]
    answer = {"text": explanation.text, "label": explanation.label, "score": round(explanation.score, 6)}
    return json.dumps({**answer, "words": words}, ensure_ascii=False)
