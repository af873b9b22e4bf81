"""The word-level tokenizer: a plain `tokenizer.json` that `AutoTokenizer` loads without a class of its own."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

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


def emoticon_mouth(letter: str) -> str:
    """
    What makes an emoticon of `:`, `;` or `=`, where `letter` matches a character of words. Letters do so only where no
    word goes on: `:d` is an emoticon, the start of `a:del` is not.
    """
    return rf"(?:[()]|[dp](?!{letter}))"


_LETTER = rf"[^\W{_UNSPACED}{_VARIATION_SELECTORS}]"
_EMOTICON_NOSE = rf"(?<=[:;=])-(?={emoticon_mouth(_LETTER)})"
SINGLE_CHARACTER = rf"[{_PICTOGRAPHS}]|(?=[{_UNSPACED}])\w"
TOKEN = rf"{SINGLE_CHARACTER}|{_LETTER}+|[:;=]{emoticon_mouth(_LETTER)}"
# What is left of Unicode's punctuation and symbols, without the colours of an emoji's skin; `_` is part of `\w`.
PUNCTUATION = "(?![\U0001f3fb-\U0001f3ff])" + r"[\p{P}\p{S}]"


def build_tokenizer(
    texts: Iterable[str],
    max_vocab_size: int | None = None,
    min_frequency: int = 1,
    keep_punctuation: bool = False,
) -> PreTrainedTokenizerFast:
    """
    Trains the tokenizer of chapter 15's data preparation, with emoticons left in their place in the text.

    HTML tags become a space; characters are composed (NFC) and lower-cased; a token is a run of word characters
    (`\\w+`) or an emoticon such as `:)`, `;-(` or `=(`, whose nose is dropped. Beyond the chapter, an emoji is a token,
    and so is each character of the scripts that put no spaces between words (Chinese, Japanese, Thai, Lao, Burmese,
    Khmer), as Chinese characters are in BERT. Ids go by falling frequency, after `<pad>` (0) and `<unk>` (1).

    Args:
        texts (`Iterable[str]`): The texts whose words make the vocabulary: those for training, with labels or without.
        max_vocab_size (`int`, *optional*): Largest number of tokens, the two special ones counted. None: no limit.
        min_frequency (`int`, *optional*, defaults to 1): Words that occur less often become `<unk>`.
        keep_punctuation (`bool`, *optional*, defaults to `False`): Whether every other punctuation mark and symbol is a
            token as well. The chapter drops them.

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
    set_word_rules(tokenizer, keep_punctuation)
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


def set_word_rules(tokenizer: Tokenizer, keep_punctuation: bool):
    """What a word is, as `tokenizer.json` says it."""
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(HTML_TAG), " "),
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(_EMOTICON_NOSE), ""),
        ]
    )
    token = f"{TOKEN}|{PUNCTUATION}" if keep_punctuation else TOKEN
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(token), behavior="removed", invert=True)
