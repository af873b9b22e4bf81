"""The word-level tokenizer: a plain `tokenizer.json` that `AutoTokenizer` loads without a class of its own."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .errors import InputError

PAD_TOKEN, UNK_TOKEN = "<pad>", "<unk>"

HTML_TAG = r"<[/!]?[A-Za-z][^<>]*>"
# Letters make a mouth only where no word goes on: `:d` is an emoticon, the start of `a:del` is not.
EMOTICON_NOSE = r"(?<=[:;=])-(?=[()]|[dp]\b)"
WORD_OR_EMOTICON = r"\w+|[:;=](?:[()]|[dp]\b)"


def build_tokenizer(
    texts: Iterable[str], max_vocab_size: int | None = None, min_frequency: int = 1
) -> PreTrainedTokenizerFast:
    """
    Trains the tokenizer of chapter 15's data preparation, with emoticons left in their place in the text.

    HTML tags become a space; text is lower-cased; a token is a run of word characters (`\\w+`) or an emoticon such as
    `:)`, `;-(` or `=(`, whose nose is dropped. Ids go by falling frequency, after `<pad>` (0) and `<unk>` (1).

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
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(HTML_TAG), " "),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(EMOTICON_NOSE), ""),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD_OR_EMOTICON), behavior="removed", invert=True)
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
