"""
Why a text was given its label: which words moved the answer and how far, and the answer after every word.

Contributions are integrated gradients (Sundararajan et al., 2017, by captum) from a text of zero embeddings to the
text, of the label's score minus the mean of the others' (for two classes, the log-odds). What n-grams add to it is
shared out equally between their words. So contributions sum up to the score of the text minus that of as many words
that say nothing.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .errors import InputError
from .modeling_rnnsent import RNNSentForSequenceClassification
from .ngrams_rnnsent import find_ngrams
from .padding import pad
from .scoring import load_torch_scorer, probabilities

# Tokens of a batch of variants of one text.
_BATCH_TOKENS, _USUAL_SIZE = 16384, 128  # as many vectors of this size, or fewer of longer ones
_INTEGRATION_STEPS = 32


@dataclass
class Explanation:
    """
    Args:
        text (`str`): The text.
        label (`str`): The label explained: the answer, or the one asked for.
        score (`float`): Its probability (regression: the value).
        unit (`str`): Of `score`, `changes` and `reading`: `"probability"`, or `"value"` for regression.
        spans (`list[tuple[int, int]]`): Where each of the `n` words stands in the text, one after the other. Of a token
            that is not in it ([CLS]), or is the second of one character, nothing.
        contributions (`np.ndarray` of shape `(n,)`, *optional*): Of every word to the label's score before softmax.
        changes (`np.ndarray` of shape `(n,)`, *optional*): What `score` loses when the word is left out.
        reading (`np.ndarray` of shape `(n,)`, *optional*): The label's probability after every word.
    """

    text: str
    label: str
    score: float
    unit: str
    spans: list[tuple[int, int]]
    contributions: np.ndarray | None = None
    changes: np.ndarray | None = None
    reading: np.ndarray | None = None

    @property
    def words(self) -> list[str]:
        """The words as they stand in the text."""
        return [self.text[start:end] for start, end in self.spans]


class Explainer:
    """
    Explains a classifier's answers.

    Args:
        model ([`RNNSentForSequenceClassification`]): A trained model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The model's own.

    Example:

    ```python
    >>> from modeling_rnnsent.explaining import Explainer

    >>> explanation = Explainer.from_pretrained("runs/default")("A dull film with a great ending.")
    >>> dict(zip(explanation.words, explanation.contributions.round(2).tolist()))
    ```
    """

    def __init__(self, model: RNNSentForSequenceClassification, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer, self.config = model.eval(), tokenizer, model.config
        self.problem_type = model.config.problem_type or "single_label_classification"
        model.rnnsent.recurrence.flatten_parameters()

    @classmethod
    def from_pretrained(cls, name: str) -> "Explainer":
        """An explainer of the model of a directory or Hub id."""
        scorer = load_torch_scorer(name, "which has no gradients")
        return cls(scorer.model, scorer.tokenizer)

    def __call__(
        self,
        text: str,
        label: str | None = None,
        contributions: bool = True,
        changes: bool | int = False,
        reading: bool = False,
    ) -> Explanation:
        """
        Args:
            text (`str`): The text.
            label (`str`, *optional*): Label to explain. None: the answer.
            contributions (`bool`, *optional*, defaults to `True`): Compute integrated gradients.
            changes (`bool` or `int`, *optional*, defaults to `False`): Compute the change when each word (each of the
                first so many) is left out, exactly: as many texts as there are words.
            reading (`bool`, *optional*, defaults to `False`): Compute the answer after every word. With one direction
                that is one pass, with two as many texts as there are words.

        Raises:
            InputError: for a label that the model does not have, or where contributions are wanted and captum is
                missing.
        """
        encoding = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        ids = np.array(encoding["input_ids"], dtype=np.int64)
        target = self._find(label, ids)
        (row,) = self._scores([ids])
        explanation = Explanation(
            text,
            label=self.config.id2label[target],
            score=float(row[target]),
            unit="value" if self.problem_type == "regression" else "probability",
            spans=_one_after_the_other(encoding["offset_mapping"]),
        )
        if contributions:
            explanation.contributions = self._contributions(ids, target)
        if changes:
            places = np.arange(len(ids) if changes is True else min(changes, len(ids)))
            blocks = np.array_split(places, max(1, len(places) * len(ids) // _BATCH_TOKENS))
            without = [self._scores([np.delete(ids, place) for place in block])[:, target] for block in blocks]
            explanation.changes = explanation.score - np.concatenate(without)
        if reading:
            explanation.reading = self._reading(ids)[:, target]
        return explanation

    def probabilities(self, text: str) -> dict[str, float]:
        """Every label's probability (regression: the value)."""
        ids = np.array(self.tokenizer(text, verbose=False)["input_ids"], dtype=np.int64)
        (row,) = self._scores([ids])
        return {self.config.id2label[index]: float(value) for index, value in enumerate(row)}

    def _find(self, label: str | None, ids: np.ndarray) -> int:
        if label is None:
            return int(self._scores([ids])[0].argmax())
        names = [self.config.id2label[index] for index in range(self.config.num_labels)]
        if label not in names:
            raise InputError(f"the model has no label {label!r}, only {names}.")
        return names.index(label)

    def _scores(self, rows: list[np.ndarray]) -> np.ndarray:
        """Probabilities (regression: values) `(len(rows), num_labels)`."""
        found = np.empty((len(rows), self.config.num_labels))
        size = max(1, _BATCH_TOKENS // max(1, max(map(len, rows), default=1)))
        for start in range(0, len(rows), size):
            with torch.inference_mode():
                logits = self.model(**self._batch(rows[start : start + size])).logits
            found[start : start + size] = self._probabilities(logits)
        return found

    def _batch(self, rows: list[np.ndarray]) -> dict[str, Tensor]:
        parts = (torch.from_numpy(part).to(self.model.device) for part in pad(rows, self.config.pad_token_id))
        return dict(zip(("input_ids", "attention_mask"), parts))

    def _probabilities(self, logits: Tensor) -> np.ndarray:
        return probabilities(logits.float().cpu().numpy(), self.problem_type).reshape(len(logits), -1)

    def _reading(self, ids: np.ndarray) -> np.ndarray:
        if self.config.bidirectional:
            return self._scores([ids[:end] for end in range(1, len(ids) + 1)])
        state, rows = None, []
        with torch.inference_mode():
            for token in torch.from_numpy(ids).to(self.model.device).view(-1, 1, 1):
                output = self.model(token, state=state, use_cache=True)
                state = output.state
                rows.append(output.logits)
        return self._probabilities(torch.cat(rows)) if rows else np.empty((0, self.config.num_labels))

    def _contributions(self, ids: np.ndarray, target: int) -> np.ndarray:
        if len(ids) == 0:
            return np.empty(0)
        try:
            from captum.attr import IntegratedGradients
        except ModuleNotFoundError:
            raise InputError("integrated gradients need captum: pip install captum") from None
        model = self.model
        input_ids = torch.from_numpy(ids).to(model.device).unsqueeze(0)
        weight = self.config.ngram_weight if model.ngrams is not None else 0.0

        def recurrent(embeddings: Tensor) -> Tensor:
            outputs = model.rnnsent(inputs_embeds=embeddings)
            return self._score(model.classifier(outputs.pooler_output), target)

        if model.get_input_embeddings() is None:
            start = torch.nn.functional.one_hot(input_ids, self.config.vocab_size).float()
        else:
            start = model.get_input_embeddings()(input_ids).detach()
        elements = len(ids) * max(_USUAL_SIZE, start.shape[-1])
        steps = min(_INTEGRATION_STEPS, max(1, _BATCH_TOKENS * _USUAL_SIZE // elements))
        gradients = IntegratedGradients(recurrent).attribute(
            start, n_steps=_INTEGRATION_STEPS, internal_batch_size=steps
        )
        found = (1 - weight) * gradients.sum(dim=-1).squeeze(0)
        if weight > 0:
            found = found + weight * self._ngram_contributions(input_ids, target)
        temperature = 1.0 if self.problem_type == "regression" else self.config.temperature  # as in the model
        return found.detach().cpu().double().numpy() / temperature

    def _score(self, logits: Tensor, target: int) -> Tensor:
        """The label's logit, minus the mean of the others where only one can be right: `(batch,)`."""
        score = logits[:, target]
        if self.problem_type == "single_label_classification":
            score = score - (logits.sum(dim=1) - score) / max(1, logits.shape[1] - 1)
        return score

    def _ngram_contributions(self, input_ids: Tensor, target: int) -> Tensor:
        ngrams = self.model.ngrams
        padded = torch.nn.functional.pad(input_ids, (ngrams.order - 1, 0), value=-1)
        rows, is_ngram = find_ngrams(padded, None, ngrams.order, ngrams.num_buckets)
        counts, count = is_ngram[0].float(), int(is_ngram.sum())
        if self.config.ngram_presence:  # one that stands several times counts once: each time has its part
            _, index, times = rows[0].masked_fill(~is_ngram[0], -1).unique(return_inverse=True, return_counts=True)
            counts, count = counts / times[index], len(times) - int(not is_ngram.all())
        scores = ngrams.scores[rows[0]] * counts.unsqueeze(-1)  # (time, sizes, columns)
        if ngrams.is_binary:
            scores = torch.nn.functional.pad(scores, (1, 0))
        shares = self._score(scores.flatten(0, 1), target).view(scores.shape[:2]) / max(1, count) ** 0.5
        words = torch.zeros(input_ids.shape[1], device=input_ids.device)
        for size in range(1, ngrams.order + 1):  # an n-gram stands at its last word
            share = shares[:, size - 1] / size
            for back in range(min(size, len(words))):
                words[: len(words) - back] += share[back:]
        return words


def _one_after_the_other(offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """A tokenizer's offsets without what an earlier token has."""
    spans, end = [], 0
    for start, stop in offsets:
        spans.append((max(start, end), max(stop, end)))
        end = spans[-1][1]
    return spans
