"""
Fits the n-gram model that stands beside a classifier's recurrent layers.

Naive Bayes gives every n-gram a log-count ratio r, how much more often it stands in texts of a class than in others
(Wang & Manning, "Baselines and Bigrams", 2012). The scores are w * r: the ratios stay, the weights w are learned by
logistic regression. So an n-gram that tells nothing cannot be given a score, however rare it is, and few steps are
enough. Counts are not cut to 0 and 1, so that a text read in pieces gives what it gives in one.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .data import pad
from .modeling_rnnsent import RNNSentForSequenceClassification
from .ngrams_rnnsent import find_ngrams

# A table has about as many rows as there are n-grams, within these limits.
LEAST_BUCKETS, MOST_BUCKETS, MOST_SCORES = 1 << 12, 1 << 22, 1 << 25
BATCH_SIZE = 32
LEARNING_RATE = 0.05
# The weights at the start: those of a naive Bayes classifier, made less sure.
FIRST_WEIGHT = 0.5
MOST_EPOCHS = 8


def choose_buckets(rows: Sequence[np.ndarray], order: int, columns: int) -> int:
    """
    A number of buckets for a table of these texts' n-grams: the power of two at or above their number.

    Args:
        rows (`Sequence[np.ndarray]`): Ids of every text.
        order (`int`): Longest n-gram.
        columns (`int`): Scores of a row: a table of many labels gets fewer rows.
    """
    seen = torch.zeros(1 << 26, dtype=torch.bool)
    for buckets, _, _ in _batches(rows, np.arange(len(rows)), order, len(seen), batch_size=256):
        seen[buckets] = True
    wanted = 1 << max(0, int(seen.sum()) - 1).bit_length()
    return max(LEAST_BUCKETS, min(wanted, MOST_BUCKETS, MOST_SCORES // (1 << (columns - 1).bit_length())))


def fit_ngrams(
    model: RNNSentForSequenceClassification,
    rows: Sequence[np.ndarray],
    labels: np.ndarray,
    validation_rows: Sequence[np.ndarray],
    validation_labels: np.ndarray,
    seed: int = 0,
) -> list[float]:
    """
    Fits `model.ngrams` by logistic regression (or least squares) on log-count ratios, with Adam on the rows of a batch.

    The same seed gives the same table. The epoch with the lowest loss on the validation texts is kept; after one
    without a lower loss there is no other.

    Args:
        model ([`RNNSentForSequenceClassification`]): With `config.ngram_order` above 0. Only `model.ngrams` is changed.
        rows (`Sequence[np.ndarray]`): Ids of every training text.
        labels (`np.ndarray`): Their labels: class ids, rows of 0 and 1 (multi-label) or values (regression).
        validation_rows, validation_labels: The same of other texts.
        seed (`int`, *optional*, defaults to 0): Of the order of the texts.

    Returns:
        `list[float]`: the loss on the validation texts of naive Bayes and after each epoch.
    """
    ngrams = model.ngrams
    problem_type = model.config.problem_type or "single_label_classification"
    targets, validation_targets = (_targets(part, problem_type) for part in (labels, validation_labels))
    shift, scale = 0.0, 1.0
    if problem_type == "regression":  # fitted to values of mean 0 and deviation 1
        shift, scale = targets.mean(dim=0), targets.std(dim=0, correction=0).clamp(min=1e-12)
        targets, validation_targets = (targets - shift) / scale, (validation_targets - shift) / scale
    shares = _shares(targets, problem_type, ngrams.scores.shape[1])
    ratios = _log_count_ratios(rows, shares, ngrams.order, ngrams.num_buckets)
    weights = torch.full_like(ratios, FIRST_WEIGHT, requires_grad=True)
    odds = shares.mean(dim=0).clamp(1e-4, 1 - 1e-4)
    bias = (torch.zeros_like(odds) if problem_type == "regression" else torch.logit(odds)).requires_grad_()

    def loss_of(index: np.ndarray, rows: Sequence[np.ndarray], targets: Tensor) -> Tensor:
        ((buckets, text, counts),) = _batches(rows, index, ngrams.order, ngrams.num_buckets, len(index))
        scores = F.embedding(buckets, weights, sparse=True) * ratios[buckets]
        total = scores.new_zeros(len(index), scores.shape[1]).index_add(0, text, scores)
        return _loss(bias + total / counts.clamp(min=1).sqrt().unsqueeze(1), targets[index], problem_type)

    @torch.no_grad()
    def validate() -> float:
        blocks = np.array_split(np.arange(len(validation_rows)), max(1, len(validation_rows) // 256))
        losses = [float(loss_of(block, validation_rows, validation_targets)) * len(block) for block in blocks]
        return sum(losses) / len(validation_rows)

    rare, common = torch.optim.SparseAdam([weights], lr=LEARNING_RATE), torch.optim.Adam([bias], lr=LEARNING_RATE)
    generator = np.random.default_rng(seed)
    history = [validate()]
    best = (weights.detach() * ratios, bias.detach().clone())
    for _ in range(MOST_EPOCHS):
        order = generator.permutation(len(rows))
        for start in range(0, len(rows), BATCH_SIZE):
            loss_of(order[start : start + BATCH_SIZE], rows, targets).backward()
            for optimizer in (rare, common):
                optimizer.step()
                optimizer.zero_grad()
        history.append(validate())
        if history[-1] > min(history[:-1]):
            break
        best = (weights.detach() * ratios, bias.detach().clone())
    ngrams.scores.copy_(best[0] * scale)
    ngrams.bias.copy_(best[1] * scale + shift)
    return history


def choose_weight(
    recurrent_logits: np.ndarray, ngram_logits: np.ndarray, labels: np.ndarray, problem_type: str
) -> float:
    """
    The `config.ngram_weight`, in steps of 0.05, with the lowest loss.

    Args:
        recurrent_logits, ngram_logits (`np.ndarray` of shape `(texts, num_labels)`): Of texts not trained on.
        labels (`np.ndarray`): Their labels.
        problem_type (`str`): As in `config.problem_type`.
    """
    recurrent, ngrams = (torch.as_tensor(part).float() for part in (recurrent_logits, ngram_logits))
    targets = _targets(labels, problem_type)
    weights = [step / 20 for step in range(21)]
    return min(weights, key=lambda weight: float(_loss(torch.lerp(recurrent, ngrams, weight), targets, problem_type)))


def _batches(rows: Sequence[np.ndarray], index: np.ndarray, order: int, num_buckets: int, batch_size: int):
    """The n-grams of the texts `index`: their rows, the place of each one's text in the batch, how many a text has."""
    for start in range(0, len(index), batch_size):
        batch = [rows[i] for i in index[start : start + batch_size]]
        input_ids, attention_mask = (torch.from_numpy(part) for part in pad(batch, 0))
        buckets, is_ngram = find_ngrams(
            F.pad(input_ids, (order - 1, 0), value=-1), attention_mask.sum(dim=1), order, num_buckets
        )
        text = torch.arange(len(batch)).view(-1, 1, 1).expand_as(buckets)[is_ngram]
        yield buckets[is_ngram], text, is_ngram.sum(dim=(1, 2))


def _targets(labels: np.ndarray, problem_type: str) -> Tensor:
    targets = torch.from_numpy(np.array(labels))
    if problem_type == "single_label_classification":
        return targets.long()
    return targets.float().view(len(targets), -1)


def _shares(targets: Tensor, problem_type: str, columns: int) -> Tensor:
    """How far each text belongs to what each score speaks for, 0 to 1: `(texts, columns)`; for a value, by its rank."""
    if problem_type == "single_label_classification":
        return targets.view(-1, 1).float() if columns == 1 else F.one_hot(targets, columns).float()
    if problem_type == "multi_label_classification":
        return targets
    return targets.argsort(dim=0).argsort(dim=0) / max(1, len(targets) - 1)


def _log_count_ratios(rows: Sequence[np.ndarray], shares: Tensor, order: int, num_buckets: int) -> Tensor:
    """
    `(num_buckets, columns)`: the logarithm of an n-gram's frequency inside over outside.

    Two are added to every count, shared out as all n-grams are, so that one never seen has a ratio of 0 also where
    classes are of different sizes. For two classes of one size that is one each, as in the paper.
    """
    inside = torch.zeros(num_buckets, shares.shape[1])
    everywhere = torch.zeros(num_buckets, 1)
    index = np.arange(len(rows))
    for start in range(0, len(rows), 256):
        ((buckets, text, _),) = _batches(rows, index[start : start + 256], order, num_buckets, 256)
        inside.index_add_(0, buckets, shares[start : start + 256][text])
        everywhere.index_add_(0, buckets, torch.ones(len(buckets), 1))
    share = (inside.sum(dim=0) / everywhere.sum().clamp(min=1)).clamp(1e-6, 1 - 1e-6)
    outside = everywhere - inside
    return (inside / share).add_(2).log_() - (outside / (1 - share)).add_(2).log_()


def _loss(logits: Tensor, targets: Tensor, problem_type: str) -> Tensor:
    if problem_type == "regression":
        return F.mse_loss(logits, targets)
    if problem_type == "multi_label_classification" or logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits, targets.view(len(logits), -1).float())
    return F.cross_entropy(logits, targets)
