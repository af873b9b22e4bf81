"""
Fits the n-gram model that stands beside a classifier's recurrent layers.

Naive Bayes gives every n-gram a log-count ratio r, how much more often it stands in texts of a class than in others
(Wang & Manning, "Baselines and Bigrams", 2012). The scores are w * r: the ratios stay, the weights w are learned by
logistic regression. So an n-gram that tells nothing cannot be given a score, however rare it is, and few steps are
enough. Where the texts of a class are few, the ratios themselves are little more than chance: there a regression with
a penalty on n-grams weighted by inverse document frequency is fitted too, and the better one kept.
An n-gram counts once in a text, as in the paper, or as often as it stands there: validation texts decide. The first
suits opinions, the second topics.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.nn import functional as F

from .modeling_rnnsent import RNNSentForSequenceClassification
from .ngram_texts import TextNgrams

# A table has at least this many rows for every n-gram, so that few share one, within these limits; four times as many
# while it is still small.
ROWS_PER_NGRAM, FEW_SCORES = 4, 1 << 22
LEAST_BUCKETS, MOST_BUCKETS, MOST_SCORES = 1 << 12, 1 << 21, 1 << 25
# What is added to the count of an n-gram. Much: rare n-grams tell little, since many are names, which are others in
# other texts. Little (one for either class, as in the paper): for few texts, in which all n-grams are rare.
SMOOTHINGS = (20.0, 2.0)
# The share by which counting once must lower the validation loss to be chosen. Of 20 newsgroups it saves 2 % on
# validation texts and costs two points of accuracy on the test's, which are later ones; of film reviews it saves 4 to
# 7 %.
LEAST_GAIN = 0.03
# With fewer tokens than this to a class, shorter n-grams alone are tried as well, since most longer ones stand in one
# text only; and so is the regression with a penalty, but where tokens times classes are more than it has time for.
FEW_TOKENS, MOST_TOKENS = 100_000, 50_000_000
# Beyond so many tokens times classes one table alone is fitted: what an n-gram takes grows with the classes.
MOST_TRIED = 200_000_000
BATCH_SIZE = 32
LEARNING_RATE = 0.05
# The weights at the start: those of a naive Bayes classifier, made less sure.
FIRST_WEIGHT = 0.5
MOST_EPOCHS = 20
# Penalties on the squared weights (scikit-learn's 1 / C), the largest first: each fit starts where the last one ended.
PENALTIES = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
STEPS_PER_PENALTY = 30
HISTORY = 5  # steps that L-BFGS remembers, each with two tensors as large as the weights; 10 are no better


def choose_buckets(rows: Sequence[np.ndarray], order: int, columns: int) -> int:
    """
    A number of buckets for a table of these texts' n-grams: the power of two at or above four times their number, or
    sixteen times while the table holds no more than `FEW_SCORES`.

    Args:
        rows (`Sequence[np.ndarray]`): Ids of every text.
        order (`int`): Longest n-gram.
        columns (`int`): Scores of a row: a table of many labels gets fewer rows.
    """
    seen = torch.zeros(1 << 26, dtype=torch.bool)
    for buckets, _, _ in TextNgrams(rows, order, len(seen), presence=False, keep=False).batches(256):
        seen[buckets] = True
    wanted = 1 << max(0, ROWS_PER_NGRAM * int(seen.sum()) - 1).bit_length()
    width = 1 << (columns - 1).bit_length()
    wanted = max(wanted, min(4 * wanted, FEW_SCORES // width))
    return max(LEAST_BUCKETS, min(wanted, MOST_BUCKETS, MOST_SCORES // width))


def fit_ngrams(
    model: RNNSentForSequenceClassification,
    rows: Sequence[np.ndarray],
    labels: np.ndarray,
    validation_rows: Sequence[np.ndarray],
    validation_labels: np.ndarray,
    seed: int = 0,
    taught_rows: Sequence[np.ndarray] = (),
    answers: np.ndarray | None = None,
    presence: bool | None = None,
) -> dict[tuple[bool, int, float | None], list[float]]:
    """
    Fits `model.ngrams` by logistic regression (or least squares), with weights on log-count ratios or with a penalty.

    N-grams that count as often as they stand in a text and such that count once are tried by the first smoothing of the
    ratios' counts, the better of them (the latter if it is so by `LEAST_GAIN`) by the others too. Where the texts of a
    class are few, both are tried by every smoothing and by the regression with a penalty, and with each every longest
    n-gram from one word to the table's until a longer one is no better (still longer ones then have a score of 0). The
    table with the lowest loss on the validation texts is kept. The same seed gives the same table.

    Args:
        model ([`RNNSentForSequenceClassification`]): With `config.ngram_order` above 0. Only `model.ngrams` and
            `config.ngram_presence` are changed.
        rows (`Sequence[np.ndarray]`): Ids of every training text.
        labels (`np.ndarray`): Their labels: class ids, rows of 0 and 1 (multi-label) or values (regression).
        validation_rows, validation_labels: The same of other texts.
        seed (`int`, *optional*, defaults to 0): Of the order of the texts.
        taught_rows (`Sequence[np.ndarray]`, *optional*): Ids of texts without labels, learned like the others.
        answers (`np.ndarray`, *optional*): A teacher's probabilities (values, for regression) for them:
            `(len(taught_rows), num_labels)`.
        presence (`bool`, *optional*): Whether an n-gram counts once a text. None: where that is clearly better.

    Returns:
        `dict[tuple[bool, int, float | None], list[float]]`: for each way to count, longest n-gram and smoothing (None:
        with a penalty) the loss on the validation texts at the start and after each epoch (or smaller penalty), until
        one with a higher loss.
    """
    ngrams = model.ngrams
    problem_type = model.config.problem_type or "single_label_classification"
    targets, validation_targets = (_targets(part, problem_type) for part in (labels, validation_labels))
    if answers is not None:
        rows, targets = [*rows, *taught_rows], _with_answers(targets, answers, problem_type, ngrams.scores.shape[1])
    shift, scale = 0.0, 1.0
    if problem_type == "regression":  # fitted to values of mean 0 and deviation 1
        shift, scale = targets.mean(dim=0), targets.std(dim=0, correction=0).clamp(min=1e-12)
        targets, validation_targets = (targets - shift) / scale, (validation_targets - shift) / scale
    shares = _shares(targets, problem_type, ngrams.scores.shape[1])
    odds = torch.logit(shares.mean(dim=0).clamp(1e-4, 1 - 1e-4))
    bias = torch.zeros_like(odds) if problem_type == "regression" else odds
    trials, orders = _choose_trials(rows, len(bias), ngrams.order, presence)
    histories, lowest = {}, float("inf")
    for presence, kinds in trials:
        presence = model.config.ngram_presence if presence is None else presence
        texts = validation_texts = given = regression = None  # of the way before: room for those of this one
        table = (ngrams.order, ngrams.num_buckets, presence)
        texts, validation_texts = (TextNgrams(part, *table) for part in (rows, validation_rows))
        given, lowest_of = (texts, targets, problem_type), dict.fromkeys(kinds, float("inf"))
        for order in orders:
            is_whole = order == ngrams.order
            inside, everywhere = _count(texts if is_whole else TextNgrams(rows, order, *table[1:], keep=False), shares)
            for kind in list(lowest_of):
                if kind is None:
                    regression = _PenalizedRegression(everywhere.squeeze(1) > 0, bias, *given)
                else:
                    regression = _RatioRegression(_log_count_ratios(inside, everywhere, kind), bias, *given, seed)
                history = histories[presence, order, kind] = []
                for loss in regression.train(validation_texts, validation_targets):
                    history.append(loss * float(scale) ** 2)  # of values in their own unit
                    if loss < lowest * (1 if model.config.ngram_presence == presence else 1 - LEAST_GAIN):
                        lowest, model.config.ngram_presence = loss, presence
                        ngrams.scores.copy_(regression.scores * scale)
                        ngrams.bias.copy_(regression.bias.detach() * scale + shift)
                if min(history) < lowest_of[kind]:
                    lowest_of[kind] = min(history)
                else:
                    del lowest_of[kind]
    return histories


def _choose_trials(
    rows: Sequence[np.ndarray], columns: int, order: int, presence: bool | None
) -> tuple[list[tuple[bool | None, list[float | None]]], range]:
    """
    What is to be tried, a way to count (None: the better so far) and smoothings (None: with a penalty) at a time, and
    the longest n-grams. A way to count that was chosen and is given again then finds the same table.
    """
    tokens, classes = sum(map(len, rows)), max(2, columns)
    are_many, presences = tokens >= FEW_TOKENS * classes, [False, True] if presence is None else [presence]
    if tokens * classes > MOST_TRIED:  # of so many classes: topics
        return [(presences[0], [SMOOTHINGS[0 if are_many else -1]])], range(order, order + 1)
    if are_many:  # each takes a minute and more
        trials = [*((presence, [SMOOTHINGS[0]]) for presence in presences), (None, [*SMOOTHINGS[1:]])]
        return trials, range(order, order + 1)
    kinds = [*SMOOTHINGS, *([None] if tokens * classes <= MOST_TOKENS else [])]
    return [(presence, kinds) for presence in presences], range(1, order + 1)


class _Regression:
    """
    Logistic regression, or least squares, on the n-grams of texts.

    Args:
        texts ([`TextNgrams`]): N-grams of every text, of all sizes, also where long ones have no score.
        targets (`torch.Tensor`): What is to be learned of each.
        problem_type (`str`): As in `config.problem_type`.
    """

    rounds: int
    scores: Tensor  # (num_buckets, columns)
    bias: Tensor  # (columns,)

    def __init__(self, texts: TextNgrams, targets: Tensor, problem_type: str):
        self.texts, self.targets, self.problem_type = texts, targets, problem_type

    def train_round(self):
        raise NotImplementedError

    def train(self, texts: TextNgrams, targets: Tensor) -> Iterator[float]:
        """Loss on other texts at the start and after every round, up to the first that is higher."""
        lowest = float("inf")
        for left in range(self.rounds, -1, -1):
            yield (loss := self.validate(texts, targets))
            if loss > lowest:
                return
            lowest = loss
            if left:
                self.train_round()

    @torch.no_grad()
    def validate(self, texts: TextNgrams, targets: Tensor) -> float:
        """Mean loss over texts."""
        scores, total, start = self.scores, 0.0, 0
        for buckets, text, counts in texts.batches(_most_texts(texts, scores.shape[1])):
            end = start + len(counts)
            logits = _logits(scores.index_select(0, buckets), self.bias, text, counts)
            total += float(_loss(logits, targets[start:end], self.problem_type)) * len(counts)
            start = end
        return total / len(texts)


class _RatioRegression(_Regression):
    """
    Scores that are weights times fixed ratios `(num_buckets, columns)`; Adam on the rows that a batch has, as
    `torch.optim.SparseAdam`. That would sort them to add up what a row gets; here a table as large as the ratios does.
    """

    def __init__(self, ratios: Tensor, bias: Tensor, texts: TextNgrams, targets: Tensor, problem_type: str, seed: int):
        super().__init__(texts, targets, problem_type)
        self.rounds, self.generator = MOST_EPOCHS, np.random.default_rng(seed)
        # Weights, their gradients' averages, those of the squares, ratios: beside each other they are one look-up.
        self.table = ratios.new_zeros(len(ratios), 4, ratios.shape[1])
        self.table[:, 0], self.table[:, 3] = FIRST_WEIGHT, ratios
        self.gradients = torch.zeros_like(ratios)
        self.bias, self.steps = bias.clone(), 0
        self.bias_optimizer = torch.optim.Adam([self.bias], lr=LEARNING_RATE)

    @property
    def scores(self) -> Tensor:
        return self.table[:, 0] * self.table[:, 3]

    @torch.no_grad()
    def train_round(self):
        """An epoch."""
        order = self.generator.permutation(len(self.texts))
        size = min(BATCH_SIZE, _most_texts(self.texts, 4 * self.gradients.shape[1]))
        for start in range(0, len(order), BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            self.bias.grad = torch.zeros_like(self.bias)
            rows = [
                self._add_gradients(batch[first : first + size], len(batch)) for first in range(0, len(batch), size)
            ]
            self._step(rows)

    def _add_gradients(self, texts: np.ndarray, batch_size: int) -> Tensor:
        """Of the loss of some of a batch's texts; returns the rows that get one."""
        rows, text, counts = self.texts(texts)
        weights, _, _, ratios = self.table.index_select(0, rows).unbind(1)
        with torch.enable_grad():
            logits = _logits(weights * ratios, self.bias, text, counts).requires_grad_()
            loss = _loss(logits, self.targets[torch.from_numpy(texts)], self.problem_type)
        gradient = torch.autograd.grad(loss, logits)[0] * (len(texts) / batch_size)
        self.bias.grad += gradient.sum(dim=0)
        gradient /= counts.clamp(min=1).sqrt().unsqueeze(1)
        _add_to_rows(self.gradients, rows, gradient.index_select(0, text) * ratios)
        return rows

    def _step(self, parts: list[Tensor], beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8):
        """A row that stands several times gets the same each time."""
        self.bias_optimizer.step()
        self.steps += 1
        rate = LEARNING_RATE * (1 - beta2**self.steps) ** 0.5 / (1 - beta1**self.steps)
        if len(parts) > 1:  # more than there is room for at once, or one row in two of them
            rows = torch.cat(parts).unique()
            parts = rows.split(-(-len(rows) // len(parts)))
        for rows in parts:
            held, gradients = self.table.index_select(0, rows), self.gradients.index_select(0, rows)
            weights, average, square, _ = held.unbind(1)
            average.lerp_(gradients, 1 - beta1)
            square.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
            weights.addcdiv_(average, square.sqrt().add_(eps), value=-rate)
            self.table.index_copy_(0, rows.long(), held)
            self.gradients.index_fill_(0, rows.long(), 0)


class _PenalizedRegression(_Regression):
    """
    Scores that are weights times inverse document frequencies, with a penalty on the weights' squares; L-BFGS over all
    texts at once, with a smaller penalty every round. `has_score` `(num_buckets,)` tells the rows to give scores to.

    Most n-grams stand in one text alone. At the best weights those of a text differ by a factor only, what each counts
    there, since together they give one number to its logits, at the least penalty: they are one feature.
    """

    def __init__(self, has_score: Tensor, bias: Tensor, texts: TextNgrams, targets: Tensor, problem_type: str):
        super().__init__(texts, targets, problem_type)
        self.seen, values = _count_matrix(texts, has_score)
        frequencies = np.diff(values.indptr)
        inverse = (np.log((1 + len(texts)) / (1 + frequencies)) + 1).astype(np.float32)
        values = scipy.sparse.diags_array(inverse) @ values
        is_alone = frequencies == 1
        alone = values[is_alone]
        lengths = np.sqrt(alone.multiply(alone).sum(axis=0)).astype(np.float32)
        features = scipy.sparse.vstack([values[~is_alone], scipy.sparse.diags_array(lengths)], format="csr")
        self.features, self.features_of_text = features, features.T.tocsr()
        # Of every n-gram: its feature, and what its score is of that one's weight.
        self.places, self.factors = np.empty(len(self.seen), dtype=np.int64), inverse
        self.places[~is_alone] = np.arange(len(frequencies) - len(alone.data))
        self.places[is_alone] = len(frequencies) - len(alone.data) + alone.indices
        self.factors[is_alone] *= alone.data / lengths[alone.indices]
        self.num_buckets, self.rounds, self.penalties = len(has_score), len(PENALTIES), iter(PENALTIES)
        self.weights = torch.zeros(features.shape[0], len(bias), requires_grad=True)
        self.bias = bias.clone().requires_grad_()

    @property
    def scores(self) -> Tensor:
        scores = torch.zeros(self.num_buckets, len(self.bias))
        scores[self.seen] = self.weights.detach()[self.places] * torch.from_numpy(self.factors).unsqueeze(1)
        return scores

    def train_round(self):
        """To the best weights, about, of the next penalty."""
        # Of the sum over texts and labels, of which the loss is the mean.
        labels = len(self.bias) if self.problem_type == "multi_label_classification" else 1
        penalty = next(self.penalties) / (len(self.texts) * labels)
        weights, bias = self.weights.detach(), self.bias.detach()

        def closure() -> Tensor:
            logits = (torch.from_numpy(self.features_of_text @ weights.numpy()) + bias).requires_grad_()
            loss = _loss(logits, self.targets, self.problem_type)
            (gradient,) = torch.autograd.grad(loss, logits)
            self.weights.grad = torch.from_numpy(self.features @ gradient.numpy()).add_(weights, alpha=penalty)
            self.bias.grad = gradient.sum(dim=0)
            return loss.detach() + penalty / 2 * weights.square().sum()

        torch.optim.LBFGS(
            [self.weights, self.bias],
            max_iter=STEPS_PER_PENALTY,
            history_size=HISTORY,
            line_search_fn="strong_wolfe",
        ).step(closure)


def _logits(scores: Tensor, bias: Tensor, text: Tensor, counts: Tensor) -> Tensor:
    """Of every text, from the scores `(n-grams, columns)` of all of its n-grams and how many it has."""
    total = scores.new_zeros(len(counts), scores.shape[1]).index_add_(0, text, scores)
    return bias + total / counts.clamp(min=1).sqrt().unsqueeze(1)


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


def _targets(labels: np.ndarray, problem_type: str) -> Tensor:
    targets = torch.from_numpy(np.array(labels))
    if problem_type == "single_label_classification":
        return targets.long()
    return targets.float().view(len(targets), -1)


def _with_answers(targets: Tensor, answers: np.ndarray, problem_type: str, columns: int) -> Tensor:
    """The targets, class ids as probabilities, and a teacher's answers after them."""
    answers = torch.tensor(answers, dtype=torch.float32)
    if problem_type == "single_label_classification":
        targets = targets.float() if columns == 1 else F.one_hot(targets, columns).float()
        answers = answers[:, 1] if columns == 1 else answers
    return torch.cat((targets, answers))


def _shares(targets: Tensor, problem_type: str, columns: int) -> Tensor:
    """How far each text belongs to what each score speaks for, 0 to 1: `(texts, columns)`; for a value, by its rank."""
    if problem_type == "single_label_classification" and targets.dim() == 1:
        return targets.view(-1, 1).float() if columns == 1 else F.one_hot(targets, columns).float()
    if problem_type != "regression":
        return targets
    # Equal values have one rank, the mean of theirs.
    _, place, counts = targets.unique(return_inverse=True, return_counts=True)
    ranks = counts.cumsum(dim=0) - (counts + 1) / 2
    return ranks[place] / max(1, len(targets) - 1)


def _count(texts: TextNgrams, shares: Tensor) -> tuple[Tensor, Tensor]:
    """
    How often every n-gram stands (with `presence`: in how many) texts of each class `(num_buckets, columns)`, and of
    all `(num_buckets, 1)`.
    """
    # float32 counts to 2^24 one by one.
    most = len(texts) if texts.presence else sum(map(len, texts.rows))
    dtype = torch.float32 if most < 1 << 24 else torch.float64
    inside = torch.zeros(texts.num_buckets, shares.shape[1], dtype=dtype)
    everywhere = torch.zeros(texts.num_buckets, 1, dtype=dtype)
    size = _most_texts(texts, shares.shape[1])
    for start, (buckets, text, _) in zip(range(0, len(texts), size), texts.batches(size)):
        _add_to_rows(inside, buckets, shares[start : start + size][text].to(dtype))
        _add_to_rows(everywhere, buckets, torch.ones(len(buckets), 1, dtype=dtype))
    return inside, everywhere


def _add_to_rows(table: Tensor, rows: Tensor, values: Tensor):
    """As `table.index_add_(0, rows, values)`, of few columns in a tenth of the time."""
    table.scatter_add_(0, rows.long().unsqueeze(1).expand_as(values), values)


def _most_texts(texts: TextNgrams, columns: int) -> int:
    """How many texts to take at once where each n-gram has a number a column: fewer of long ones and many columns."""
    longest = max(map(len, texts.rows), default=1)
    return max(1, min(256, MOST_SCORES // (longest * texts.order * columns + 1)))


def _count_matrix(texts: TextNgrams, is_counted: Tensor) -> tuple[Tensor, scipy.sparse.csr_array]:
    """
    The rows of the table that `is_counted` `(num_buckets,)` allows and texts have, and how often each text has them
    (once, with `presence`) over the square root of the number of its n-grams: `(rows of the table, texts)`.
    """
    found, places, values = [], [], []
    for start, (buckets, text, counts) in zip(range(0, len(texts), 256), texts.batches(256)):
        kept = is_counted[buckets]
        found.append(buckets[kept].long())
        places.append(text[kept] + start)
        values.append(counts[text[kept]].rsqrt())
    seen, rows = torch.cat(found).unique(return_inverse=True)
    # What stands several times in a text is added up.
    matrix = scipy.sparse.csr_array(
        (torch.cat(values).numpy(), (rows.numpy(), torch.cat(places).numpy())), shape=(len(seen), len(texts))
    )
    return seen, matrix


def _log_count_ratios(inside: Tensor, everywhere: Tensor, smoothing: float) -> Tensor:
    """
    `(num_buckets, columns)`: the logarithm of an n-gram's share of all n-grams inside a class over that outside.

    `smoothing` is added to every count, shared out as all n-grams are, so that one never seen has a ratio of 0 also
    where classes are of different sizes.
    """
    share = (inside.sum(dim=0) / everywhere.sum().clamp(min=1)).clamp(1e-6, 1 - 1e-6)
    return ((inside / share + smoothing).log_() - ((everywhere - inside) / (1 - share) + smoothing).log_()).float()


def _loss(logits: Tensor, targets: Tensor, problem_type: str) -> Tensor:
    if problem_type == "regression":
        return F.mse_loss(logits, targets)
    if problem_type == "multi_label_classification" or logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits, targets.view(len(logits), -1).float())
    return F.cross_entropy(logits, targets)
