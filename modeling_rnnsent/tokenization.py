"""The word-level tokenizer: a plain `tokenizer.json` that `AutoTokenizer` loads without a class of its own."""

import json
import re
import string
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .errors import InputError

PAD_TOKEN, UNK_TOKEN = "<pad>", "<unk>"

HTML_TAG = r"<[/!]?[A-Za-z][^<>]*>"
# Written without spaces: Thai and Lao, Burmese, Khmer, Chinese, Japanese. A run of their letters is a sentence.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
# Emoji, hearts, stars; not the colours of their skin.
_PICTOGRAPHS = "\u2600-\u27bf\u2b50\U0001f300-\U0001f3fa\U0001f400-\U0001faff"
_VARIATION_SELECTORS = "\ufe00-\ufe0f"  # marks by their category, and so part of `\w`


def _rules(letter: str) -> tuple[str, str]:
    """What an emoticon's nose is, and what a word or an emoticon, where `letter` matches a character of words."""
    # Letters make a mouth only where no word goes on: `:d` is an emoticon, the start of `a:del` is not.
    mouth = rf"(?:[()]|[dp](?!{letter}))"
    return rf"(?<=[:;=])-(?={mouth})", rf"{letter}+|[:;=]{mouth}"


EMOTICON_NOSE, WORD_OR_EMOTICON = _rules(rf"[^\W{_UNSPACED}{_VARIATION_SELECTORS}]")
SINGLE_CHARACTER = rf"[{_PICTOGRAPHS}]|(?=[{_UNSPACED}])\w"
TOKEN = rf"{SINGLE_CHARACTER}|{WORD_OR_EMOTICON}"


def build_tokenizer(
    texts: Iterable[str], max_vocab_size: int | None = None, min_frequency: int = 1
) -> PreTrainedTokenizerFast:
    """
    Trains the tokenizer of chapter 15's data preparation, with emoticons left in their place in the text.

    HTML tags become a space; characters are composed (NFC) and lower-cased; a token is a run of word characters
    (`\\w+`) or an emoticon such as `:)`, `;-(` or `=(`, whose nose is dropped. Beyond the chapter, an emoji is a token,
    and so is each character of the scripts that put no spaces between words (Chinese, Japanese, Thai, Lao, Burmese,
    Khmer), as Chinese characters are in BERT. Ids go by falling frequency, after `<pad>` (0) and `<unk>` (1).

    Args:
        texts (`Iterable[str]`): The texts whose words make the vocabulary: the training split's.
        max_vocab_size (`int`, *optional*): Largest number of tokens, the two special ones counted. None: no limit.
        min_frequency (`int`, *optional*, defaults to 1): Words that occur less often become `<unk>`.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: pads on the right.

    Raises:
        InputError: where the options are out of range or no word is left.
    """
    if max_vocab_size is not None and max_vocab_size < 3:
        raise InputError(
            f"max_vocab_size must be at least 3, for {PAD_TOKEN}, {UNK_TOKEN} and a word, got {max_vocab_size}."
        )
    if min_frequency < 1:
        raise InputError(f"min_frequency must be at least 1, got {min_frequency}.")
    tokenizer = Tokenizer(models.WordLevel({PAD_TOKEN: 0, UNK_TOKEN: 1}, unk_token=UNK_TOKEN))
    _set_word_rules(tokenizer)
    trainer = trainers.WordLevelTrainer(
        vocab_size=max_vocab_size or 2**31,
        min_frequency=min_frequency,
        special_tokens=[PAD_TOKEN, UNK_TOKEN],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < 3:
        raise InputError(
            f"The vocabulary is empty: no word occurs at least {min_frequency} time(s) in the training texts."
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        unk_token=UNK_TOKEN,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )


def _set_word_rules(tokenizer: Tokenizer):
    """What a word is, as `tokenizer.json` says it."""
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(HTML_TAG), " "),
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(EMOTICON_NOSE), ""),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN), behavior="removed", invert=True)


class WordEncoder:
    """
    Many texts to ids: a tokenizer's own, several times as fast where the tokenizer is one of [`build_tokenizer`].

    Plain ASCII is then split by `bytes.translate` and `bytes.split`, which need neither `tokenizers`' regular
    expressions nor its bookkeeping of offsets. What stands between two spaces and is not ASCII goes to the tokenizer
    itself, and so does a text that is more than a quarter of that kind.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): A fast tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        # A copy: the tokenizer itself keeps the padding and truncation of its last call.
        self.backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.no_padding()
        self.backend.no_truncation()
        self.ids = _Ids((word.encode(), index) for word, index in tokenizer.get_vocab().items())
        self.ids.unknown = tokenizer.unk_token_id
        self._encode_piece = lru_cache(10_000)(self._encode_by_tokenizer)
        self.special = [token.content for token in tokenizer.added_tokens_decoder.values()]
        rules, own = json.loads(self.backend.to_str()), Tokenizer(models.WordLevel({UNK_TOKEN: 0}, UNK_TOKEN))
        _set_word_rules(own)
        expected = json.loads(own.to_str())
        self.is_ours = (
            rules["model"]["type"] == "WordLevel"
            and all(rules[part] == expected[part] for part in ("normalizer", "pre_tokenizer"))
            and not (rules["post_processor"] or {}).get("special_tokens")
            and set(self.special) <= {PAD_TOKEN, UNK_TOKEN}
        )

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of every text, as `tokenizer(texts)["input_ids"]` without truncation, in int64 arrays."""
        rows: list[np.ndarray | None] = [self._encode(text) if self.is_ours else None for text in texts]
        left = [index for index, row in enumerate(rows) if row is None]
        for index, encoding in zip(left, self.backend.encode_batch_fast([texts[index] for index in left])):
            rows[index] = np.array(encoding.ids, dtype=np.int64)
        return rows

    def _encode(self, text: str) -> np.ndarray | None:
        if "<" in text:
            if any(token in text for token in self.special):
                return None
            text = _HTML_TAG.sub(" ", text)
        if text.isascii():
            return self._encode_ascii(text)
        pieces = text.split(" ")  # a space ends words, emoticons, and what the case of a letter may hang on
        others = [place for place, piece in enumerate(pieces) if not piece.isascii()]
        if 4 * sum(len(pieces[place]) for place in others) > len(text):
            return None
        rows, start = [], 0
        for place in others:
            rows += [self._encode_ascii(" ".join(pieces[start:place])), self._encode_piece(pieces[place])]
            start = place + 1
        return np.concatenate((*rows, self._encode_ascii(" ".join(pieces[start:]))))

    def _encode_by_tokenizer(self, piece: str) -> np.ndarray:
        return np.array(self.backend.encode(piece).ids, dtype=np.int64)

    def _encode_ascii(self, text: str) -> np.ndarray:
        # The second half is asked for few texts, and takes as long as the rest.
        if (":" in text or ";" in text or "=" in text) and _MAY_BE_EMOTICON.search(text):
            words = _WORD_OR_EMOTICON.findall(_EMOTICON_NOSE.sub(b"", text.lower().encode()))
        else:
            words = text.encode().translate(_TO_WORDS).split()
        return np.fromiter(map(self.ids.__getitem__, words), dtype=np.int64, count=len(words))


class _Ids(dict):
    unknown: int

    def __missing__(self, word: bytes) -> int:
        return self.unknown


_HTML_TAG = re.compile(HTML_TAG, re.ASCII)
_EMOTICON_NOSE, _WORD_OR_EMOTICON = (re.compile(pattern.encode()) for pattern in _rules(r"\w"))  # those of ASCII
_MAY_BE_EMOTICON = re.compile("[:;=]-?[()dpDP]")
_WORD_CHARACTERS = set(string.ascii_letters + string.digits + "_")
# Letters to small ones, what is in no word to spaces.
_TO_WORDS = bytes(ord(chr(code).lower()) if chr(code) in _WORD_CHARACTERS else 32 for code in range(256))
