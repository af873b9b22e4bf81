"""Many texts to ids, faster than `tokenizers` itself, where the tokenizer is one of `tokenization`."""

import json
import re
import string
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase

from .tokenization import HTML_TAG, PAD_TOKEN, UNK_TOKEN, emoticon_mouth, set_word_rules

# So much text is split and looked up at once, which bounds the memory beside the ids.
_CHUNK_CHARACTERS = 1 << 20
# Below, Arrow takes longer to start than Python to end.
_ARROW_FROM = 1 << 18


class WordEncoder:
    """
    Many texts to ids: a tokenizer's own, several times as fast where the tokenizer is one of [`build_tokenizer`].

    What needs a regular expression is marked in the text first. The rest is `bytes.translate` and a split at spaces,
    for many texts by Arrow, which leaves the interpreter to the model's threads meanwhile. What stands between two
    spaces and is not ASCII goes to the tokenizer itself, and so does a text that is more than a quarter of that kind.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): A fast tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        # A copy: the tokenizer itself keeps the padding and truncation of its last call.
        self.backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.no_padding()
        self.backend.no_truncation()
        self.ids = _Ids(tokenizer.get_vocab())
        self.ids.unknown = tokenizer.unk_token_id
        self.ids.update({mark: self.ids[emoticon] for emoticon, mark in _EMOTICON_MARKS.items()}, **_ID_OF_MARK)
        self._encode_piece = lru_cache(10_000)(self._encode_by_tokenizer)
        self.special = [token.content for token in tokenizer.added_tokens_decoder.values()]
        rules = json.loads(self.backend.to_str())
        self.keeps_punctuation = _are_word_rules(rules, keep_punctuation=True)
        self.is_ours = (
            (self.keeps_punctuation or _are_word_rules(rules, keep_punctuation=False))
            and rules["model"]["type"] == "WordLevel"
            and not (rules["post_processor"] or {}).get("special_tokens")
            and set(self.special) <= {PAD_TOKEN, UNK_TOKEN}
        )

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of every text, as `tokenizer(texts)["input_ids"]` without truncation, in int64 arrays."""
        rows: list[np.ndarray | None] = [None] * len(texts)
        for places, marked, pieces in self._marked_chunks(texts):
            for place, row in zip(places, self._look_up(marked, pieces)):
                rows[place] = row
        left = [index for index, row in enumerate(rows) if row is None]
        for index, encoding in zip(left, self.backend.encode_batch_fast([texts[index] for index in left])):
            rows[index] = np.array(encoding.ids, dtype=np.int64)
        return rows

    def _marked_chunks(self, texts: list[str]) -> Iterator[tuple[list[int], list[str], list[str]]]:
        """Places of texts that need not go to the tokenizer whole, these texts marked, and their pieces that do."""
        places, marked, pieces, size = [], [], [], 0
        for place, text in enumerate(texts if self.is_ours else ()):
            if (found := self._mark(text)) is None:
                continue
            places.append(place)
            marked.append(found[0])
            pieces += found[1]
            size += len(found[0])
            if size >= _CHUNK_CHARACTERS:
                yield places, marked, pieces
                places, marked, pieces, size = [], [], [], 0
        if places:
            yield places, marked, pieces

    def _mark(self, text: str) -> tuple[str, Sequence[str]] | None:
        """
        The text in ASCII and small letters, with marks for emoticons and for pieces that are not ASCII, and these
        pieces. None where the whole text goes to the tokenizer.
        """
        if "<" in text:
            if any(token in text for token in self.special):
                return None
            text = _HTML_TAG.sub(" ", text)
        pieces: Sequence[str] = ()
        if text.isascii():
            text = text.lower()
        else:
            plain, pieces = _cut_out_pieces(text)
            if 4 * sum(map(len, pieces)) > len(text):
                return None
            text = f" {_PIECE} ".join(map(str.lower, plain))
        for eyes, emoticon in _EMOTICONS.items():
            if eyes in text:
                text = emoticon.sub(_mark_emoticon, text)
        return text, pieces

    def _look_up(self, marked: list[str], pieces: list[str]) -> list[np.ndarray]:
        """Ids of marked texts."""
        joined = "".join([f"{_START} {text} " for text in marked]) + _START
        plain = joined.encode().translate(_TO_TOKENS if self.keeps_punctuation else _TO_WORDS)
        if self.keeps_punctuation:
            for mark, apart in _APART.items():  # three times as fast as by arrays of numpy, fifteen as by `re`
                plain = plain.replace(mark, apart)
        if len(plain) < _ARROW_FROM:
            ids = self._ids_of(plain.decode().split())
        else:
            words = pc.dictionary_encode(pc.ascii_split_whitespace(pa.array([plain], pa.large_string())).values)
            ids = self._ids_of(words.dictionary.to_numpy(zero_copy_only=False))[words.indices.to_numpy()]
        if pieces:
            ids = _replaced(ids, _ID_OF_MARK[_PIECE], [self._encode_piece(piece) for piece in pieces])
        starts = np.flatnonzero(ids == _ID_OF_MARK[_START]).tolist()
        return [ids[start + 1 : stop] for start, stop in zip(starts, starts[1:])]

    def _ids_of(self, words: Sequence[str]) -> np.ndarray:
        return np.fromiter(map(self.ids.__getitem__, words), dtype=np.int64, count=len(words))

    def _encode_by_tokenizer(self, piece: str) -> np.ndarray:
        return np.array(self.backend.encode(piece).ids, dtype=np.int64)


def _are_word_rules(rules: dict, keep_punctuation: bool) -> bool:
    """Whether a tokenizer's rules, as its file holds them, are those of [`build_tokenizer`]."""
    own = Tokenizer(models.WordLevel({UNK_TOKEN: 0}, UNK_TOKEN))
    set_word_rules(own, keep_punctuation)
    expected = json.loads(own.to_str())
    return all(rules[part] == expected[part] for part in ("normalizer", "pre_tokenizer"))


class _Ids(dict):
    unknown: int

    def __missing__(self, word: str) -> int:
        return self.unknown


def _cut_out_pieces(text: str) -> tuple[list[str], list[str]]:
    """What of a text is not ASCII, from space to space, taken out: what is between, and the pieces."""
    between, pieces, start = [], [], 0
    while found := _NOT_ASCII.search(text, start):
        # A space ends words, emoticons, and what the case of a letter may hang on.
        first, stop = text.rfind(" ", start, found.start()) + 1 or start, text.find(" ", found.end())
        between.append(text[start:first])
        start = stop if stop >= 0 else len(text)
        pieces.append(text[first:start])
    return [*between, text[start:]], pieces


def _replaced(ids: np.ndarray, mark: int, rows: list[np.ndarray]) -> np.ndarray:
    """Ids with the rows, of any length, in the places of the marks."""
    parts, start = [], 0
    for place, row in zip(np.flatnonzero(ids == mark).tolist(), rows):
        parts += [ids[start:place], row]
        start = place + 1
    return np.concatenate([*parts, ids[start:]])


def _mark_emoticon(emoticon: re.Match[str]) -> str:
    return f" {_EMOTICON_MARKS[emoticon[0].replace('-', '')]} "


_HTML_TAG = re.compile(HTML_TAG, re.ASCII)
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
# One pattern for each kind of eyes: `re` finds a single character far faster than one of several.
_EMOTICONS = {eyes: re.compile(eyes + "-?" + emoticon_mouth(r"\w"), re.ASCII) for eyes in ":;="}
# Marks are capital letters, since the text's own have been made small ones.
_EMOTICON_MARKS = {
    eyes + mouth: eyes_mark + mouth_mark
    for eyes, eyes_mark in zip(":;=", "CSE")
    for mouth, mouth_mark in zip("()dp", "LRDP")
}
_START, _PIECE = "T", "P"
_ID_OF_MARK = {_START: -1, _PIECE: -2}
# Bytes that belong to no token become spaces.
_WORD_CHARACTERS = string.ascii_letters + string.digits + "_"
_TO_WORDS = bytes(code if chr(code) in _WORD_CHARACTERS else 32 for code in range(256))
_TO_TOKENS = bytes(code if chr(code) in _WORD_CHARACTERS + string.punctuation else 32 for code in range(256))
_APART = {mark.encode(): f" {mark} ".encode() for mark in string.punctuation if mark != "_"}
