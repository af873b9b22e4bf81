"""
How the n-gram model beside the recurrent layers does by longest n-gram, rows of its table and punctuation marks:

    python benchmarks/ngrams.py [DATASET]

Validation accuracy and loss on a fifth of IMDb's training reviews, held out film by film, of the n-grams alone.
"""

import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
from measuring import describe_machine, show, write

from modeling_rnnsent import RNNSentConfig, RNNSentForSequenceClassification
from modeling_rnnsent.arguments import DataArguments
from modeling_rnnsent.bulk import BulkClassifier
from modeling_rnnsent.data import load_labeled_texts
from modeling_rnnsent.encoding import WordEncoder
from modeling_rnnsent.ngrams import choose_buckets, fit_ngrams
from modeling_rnnsent.scoring import TorchScorer
from modeling_rnnsent.tokenization import build_tokenizer

WORDS = ((1, None), (2, None), (3, None), (4, None))
SETTINGS = {False: WORDS, True: (*WORDS, (2, 1 << 18), (3, 1 << 20), (3, 1 << 23))}


def measure(dataset_name: str) -> Iterator[dict]:
    arguments = DataArguments(dataset_name=dataset_name, validation_size=0.2, holdout_block_size=50)
    splits = load_labeled_texts(arguments).splits
    texts = {name: list(splits[name]["text"]) for name in ("train", "validation")}
    labels = {name: np.array(splits[name]["label"]) for name in texts}
    for keep_punctuation, settings in SETTINGS.items():
        tokenizer = build_tokenizer(texts["train"], max_vocab_size=45000, keep_punctuation=keep_punctuation)
        encode = WordEncoder(tokenizer)
        rows = {name: encode(part) for name, part in texts.items()}
        for order, buckets in settings:
            yield {"punctuation": keep_punctuation, **measure_table(tokenizer, texts, rows, labels, order, buckets)}


def measure_table(tokenizer, texts: dict, rows: dict, labels: dict, order: int, buckets: int | None) -> dict:
    start = time.perf_counter()
    buckets = buckets or choose_buckets(rows["train"], order, 1)
    settings = {"ngram_order": order, "ngram_buckets": buckets, "ngram_weight": 1.0}
    model = RNNSentForSequenceClassification(
        RNNSentConfig(vocab_size=len(tokenizer), embedding_size=1, hidden_size=1, **settings)
    )
    losses = fit_ngrams(model, rows["train"], labels["train"], rows["validation"], labels["validation"])
    best = min((key for key in losses if key[0] == model.config.ngram_presence), key=lambda key: min(losses[key]))
    seconds = time.perf_counter() - start
    positive = [answer[1] for answer in BulkClassifier(TorchScorer(model, tokenizer))(texts["validation"])]
    return {
        "longest n-gram": order,
        "rows": buckets,
        "accuracy": f"{np.mean((np.array(positive) > 0.5) == labels['validation']):.4f}",
        "loss": f"{min(losses[best]):.4f}",
        "presence": best[0],
        "smoothing": best[2],
        "epochs": len(losses[best]) - 1,
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    table = list(measure(sys.argv[1] if len(sys.argv) > 1 else "stanfordnlp/imdb"))
    show("n-grams alone, 20,000 reviews to train and 5,000 to validate", table)
    write("ngrams", describe_machine(), table)
