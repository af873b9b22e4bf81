"""Text classified while it arrives, in memory that does not grow with it."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .bulk import check_unicode
from .configuration_rnnsent import RNNSentConfig
from .encoding import WordEncoder
from .errors import InputError, loading
from .modeling_rnnsent import RNNSentForSequenceClassification
from .padding import pad
from .scoring import PIECE_TOKENS, as_answer, load_torch_scorer, probabilities
from .tokenization import HTML_TAG, SINGLE_CHARACTER

_LEAST_PIECE = 128  # words of a text, however many others there are
_TAG = re.compile(HTML_TAG)
# Ends a word before it, and is composed with nothing there: a letter or an emoji, not a mark (or digit).
_STARTS_ANEW = re.compile(rf"(?=[^\d_])(?:{SINGLE_CHARACTER})")
# The start of an HTML tag that has not come to its end: what stands in it may still turn out not to be text.
_OPEN_TAG = re.compile(r"<(?:[/!]?[A-Za-z][^<>]*|[/!]?)\Z")


class StreamingClassifier:
    """
    Many texts read at the same time, each in pieces as they come; the answer is always that to the words so far.

    What comes after a text's last white space waits for what follows it, since a word may go on; in scripts without
    spaces that is the last character. An HTML tag that has begun, "a <b" for example, waits with all that follows until
    it ends, or another begins. So the answers do not depend on where the pieces were cut, and [`finish`] gives that to
    the whole text.

    Args:
        model ([`RNNSentForSequenceClassification`]): A trained model of one direction.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The model's own, made by `build_tokenizer`.

    Raises:
        ValueError: for a bidirectional model, or another kind of tokenizer.

    Example:

    ```python
    >>> from modeling_rnnsent.streaming import StreamingClassifier

    >>> streams = StreamingClassifier.from_pretrained("runs/book")
    >>> streams.feed({"caller 1": "I have been wai", "caller 2": "Thank you, "})
    >>> streams.feed({"caller 1": "ting for an hour."})["caller 1"].keys()
    dict_keys(['label', 'score'])
    >>> streams.finish("caller 1").keys()
    dict_keys(['label', 'score'])
    ```
    """

    def __init__(self, model: RNNSentForSequenceClassification, tokenizer: PreTrainedTokenizerBase):
        if model.config.bidirectional:
            raise ValueError(
                "StreamingClassifier needs a model with `bidirectional=False`, got True: its backward direction starts "
                "at a text's end, which has not come yet."
            )
        self.encode = WordEncoder(tokenizer)
        if not self.encode.is_ours:
            raise ValueError(
                "StreamingClassifier needs a tokenizer of `build_tokenizer`, whose words end at white space."
            )
        self.model, self.config = model.eval(), model.config
        model.rnnsent.recurrence.flatten_parameters()  # in inference mode, in which it answers, it is too late
        self._states: dict[str, tuple[Tensor, ...]] = {}
        self._waiting: dict[str, str] = {}
        # Of a text of no words: what every text starts from.
        self._start, _ = self._read([np.empty(0, dtype=np.int64)], None)
        self._logits: dict[str, np.ndarray] = {}

    @classmethod
    def from_pretrained(cls, name: str) -> "StreamingClassifier":
        """
        A classifier with the model of a directory or Hub id.

        Raises:
            InputError: where it holds no classifier of this package, or an exported one.
        """
        scorer = load_torch_scorer(name, "which carries no state")
        return cls(scorer.model, scorer.tokenizer)

    @property
    def streams(self) -> list[str]:
        """Names of the texts that are being read."""
        return list(self._waiting)

    def feed(self, pieces: Mapping[str, str]) -> dict[str, dict]:
        """
        Reads on in some texts; a name that is new begins one.

        Args:
            pieces (`Mapping[str, str]`): What has come, by the text's name.

        Returns:
            `dict[str, dict]`: for each the answer to the words so far, `{"label": name, "score": probability}` (of a
            regression the value); of several labels a text `{"labels": {name: probability}}`.

        Raises:
            ValueError: where `pieces` is no mapping from strings to strings.
            InputError: where a piece is no valid Unicode. No piece has been read then.
        """
        if not isinstance(pieces, Mapping):
            raise ValueError(f"`feed` takes pieces of text by the text's name, {{name: piece}}, got {pieces!r:.100}.")
        for name, piece in pieces.items():
            if not isinstance(name, str) or not isinstance(piece, str):
                raise ValueError(f"`feed` takes names and pieces of text, got {name!r:.100}: {piece!r:.100}.")
            check_unicode(piece, f"the piece of {name!r}")  # before anything is read: all pieces or none
        ready, waiting = {}, {}
        for name, piece in pieces.items():
            text = self._waiting.get(name, "") + piece
            end = _safe_end(text)
            ready[name], waiting[name] = text[:end], text[end:]
        self._advance(ready)
        self._waiting |= waiting
        return {name: self._answer(name) for name in pieces}

    def finish(self, name: str) -> dict:
        """
        The answer to a whole text, as [`feed`] gives it; the text is over and forgotten then.

        Raises:
            ValueError: where no text of that name is being read.
        """
        self._check(name)
        self._advance({name: self._waiting[name]})
        answer = self._answer(name)
        for store in (self._waiting, self._states, self._logits):
            store.pop(name, None)
        return answer

    def save(self, path: str):
        """
        Writes every text's state, and what waits, into a safetensors file, to be taken up by [`load`].

        Raises:
            InputError: where the file cannot be written.
        """
        tensors, names = {}, self.streams
        for index, name in enumerate(names):
            for place, part in enumerate(self._states.get(name, self._start)):
                tensors[f"{index}.{place}"] = part.contiguous()
        waiting = [[name, self._waiting[name]] for name in names]
        unfinished = f"{path}.{os.getpid()}"
        try:
            save_file(tensors, unfinished, metadata={"streams": json.dumps(waiting), "model": self._model_id})
            os.replace(unfinished, path)  # whole, or what was there
        except (OSError, SafetensorError) as error:
            Path(unfinished).unlink(missing_ok=True)
            raise InputError(f"cannot write the streams {path!r}: {error}") from error

    def load(self, path: str):
        """
        Takes up the texts of a file that [`save`] wrote, beside those that are being read; one of the same name goes on
        from what the file holds.

        Raises:
            InputError: where the file cannot be read, or was written with another model. No text has been taken up
                then.
        """
        if not Path(path).is_file():
            raise InputError(f"cannot load the streams {path!r}: there is no such file.")
        with loading("streams", path), safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("model") != self._model_id:
                raise InputError(f"the streams {path!r} were written with another model.")
            waiting = dict(json.loads(metadata["streams"]))
            states = {
                name: tuple(
                    file.get_tensor(f"{index}.{place}").to(self.model.device) for place in range(len(self._start))
                )
                for index, name in enumerate(waiting)
            }
        self._states |= states
        self._waiting |= waiting
        for name in waiting:
            self._logits.pop(name, None)
        self._advance(dict.fromkeys(waiting, ""))

    @cached_property
    def _model_id(self) -> str:
        """Tells models apart: a digest of every weight and setting."""
        digest = hashlib.sha256()
        settings = {name: getattr(self.config, name) for name in (*RNNSentConfig.__annotations__, "problem_type")}
        digest.update(json.dumps(settings, sort_keys=True).encode())
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def _check(self, name: str):
        if name not in self._waiting:
            raise ValueError(f"there is no stream {name!r}, only {self.streams}.")

    def _advance(self, texts: dict[str, str]):
        """Reads words; every text's in one batch, and what is long in pieces."""
        rows = dict(zip(texts, self.encode(list(texts.values()))))
        names = [name for name in texts if len(rows[name]) or name not in self._logits]
        while names:
            length = max(_LEAST_PIECE, PIECE_TOKENS // len(names))
            states = [self._states.get(name, self._start) for name in names]
            state = tuple(torch.cat(parts, dim=self._batch_dim(place)) for place, parts in enumerate(zip(*states)))
            state, logits = self._read([rows[name][:length] for name in names], state)
            for index, name in enumerate(names):
                self._states[name] = tuple(
                    part.narrow(self._batch_dim(place), index, 1).clone() for place, part in enumerate(state)
                )
                self._logits[name], rows[name] = logits[index], rows[name][length:]
            names = [name for name in names if len(rows[name])]

    def _batch_dim(self, place: int) -> int:
        """Which dimension of a part of the state counts texts: the second of the recurrent layers' parts."""
        return 1 if place < self.model.rnnsent.num_recurrent_states else 0

    @torch.inference_mode()
    def _read(self, rows: list[np.ndarray], state: tuple[Tensor, ...] | None) -> tuple[tuple[Tensor, ...], np.ndarray]:
        input_ids, attention_mask = (
            torch.from_numpy(part).to(self.model.device) for part in pad(rows, self.config.pad_token_id)
        )
        output = self.model(input_ids, attention_mask=attention_mask, state=state, use_cache=True)
        return output.state, output.logits.float().cpu().numpy()

    def _answer(self, name: str) -> dict:
        (row,) = probabilities(self._logits[name][None], self.config.problem_type or "single_label_classification")
        return as_answer(row, self.config)


def _safe_end(text: str) -> int:
    """Up to where a text's words are sure, whatever comes after it: its last space, tag or single character."""
    tag = _OPEN_TAG.search(text)
    end = tag.start() if tag else len(text)
    spaced = _TAG.sub(lambda found: " " * len(found[0]), text[:end])
    while end > 0 and not spaced[end - 1].isspace() and not _STARTS_ANEW.match(text, end):
        end -= 1
    return end
