"""
A fuzz run guided by coverage (atheris, libFuzzer): what comes after is a right answer or an error that names the cause.

    python tests/fuzz.py text|config [-max_total_time=SECONDS] [CORPUS_DIRECTORY]

`text` goes from any text to probabilities, through the pipeline and through `BulkClassifier`, which must agree;
`config` from any JSON object to a model that classifies.

Tried by hand on 2026-11-24 for half an hour each: `text` 461,531 runs, `config` 893,075, and nothing found. An hour
needs -rss_limit_mb=8192: what atheris adds to Python code loses some 4 KB a run; without it memory stays flat.
"""

import json
import sys
import tempfile
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
with atheris.instrument_imports(include=["modeling_rnnsent"]):
    import modeling_rnnsent  # noqa: F401
    from modeling_rnnsent import RNNSentConfig, RNNSentForSequenceClassification
    from modeling_rnnsent.bulk import BulkClassifier
    from modeling_rnnsent.scoring import TorchScorer

import numpy as np  # noqa: E402
import torch  # noqa: E402
from huggingface_hub.errors import StrictDataclassError  # noqa: E402
from test_bulk import TOKENIZER, make_model  # noqa: E402
from transformers import TextClassificationPipeline, logging  # noqa: E402

WORDS = ["good", "bad", "<br />", " ", ":-)", "film", "\u00e9", "\U0001f44d", "<pad>", "\u202e"]
FIELDS = [*RNNSentConfig.__annotations__, "num_labels", "id2label", "label2id", "problem_type"]
VALUES = [
    None,
    True,
    False,
    0,
    1,
    3,
    -1,
    0.5,
    float("nan"),
    1e300,
    "lstm",
    "gru",
    "rnn",
    "max_mean",
    "sigmoid",
    "mul",
    [],
    {},
]


def make_text_target():
    model = make_model(
        tempfile.mkdtemp(), pooling="max_mean", bidirectional=True, ngram_order=2, ngram_buckets=64, ngram_weight=0.5
    )
    torch.nn.init.normal_(model.ngrams.scores)
    classify = TextClassificationPipeline(model=model, tokenizer=TOKENIZER, top_k=None)
    bulk = BulkClassifier(TorchScorer(model, TOKENIZER), num_threads=1)

    def run(data: bytes):
        provider = atheris.FuzzedDataProvider(data)
        text = ""
        while provider.remaining_bytes() and len(text) < 2000:
            text += (
                WORDS[provider.ConsumeIntInRange(0, len(WORDS) - 1)]
                if provider.ConsumeBool()
                else (provider.ConsumeUnicodeNoSurrogates(12))
            )
        answers = {answer["label"]: answer["score"] for answer in classify(text)[0]}
        expected = np.array([answers["neg"], answers["pos"]])
        (found,) = bulk([text])
        assert np.isfinite(found).all() and np.abs(found - expected).max() < 1e-5, repr(text)

    return run


def run_config(data: bytes):
    provider = atheris.FuzzedDataProvider(data)
    fields = {"vocab_size": 20, "embedding_size": 4, "hidden_size": 4}
    for _ in range(provider.ConsumeIntInRange(0, 6)):
        name = FIELDS[provider.ConsumeIntInRange(0, len(FIELDS) - 1)]
        if provider.ConsumeBool():
            fields[name] = VALUES[provider.ConsumeIntInRange(0, len(VALUES) - 1)]
        else:
            fields[name] = provider.ConsumeIntInRange(-3, 40)
    try:
        config = RNNSentConfig.from_dict(fields)
        model = RNNSentForSequenceClassification(config).eval()
    except (ValueError, OSError, StrictDataclassError):
        return
    ids = torch.tensor([[1, 0, 0]]) % config.vocab_size
    logits = model(ids, attention_mask=torch.tensor([[1, 1, 0]])).logits
    assert logits.shape == (1, model.num_labels) and torch.isfinite(logits).all(), json.dumps(fields)


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    target = {"text": make_text_target, "config": lambda: run_config}[sys.argv.pop(1)]()
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
