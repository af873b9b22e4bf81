"""
What a classifier can learn beside its labels: to be sure of itself near every text, and what a teacher says.

Four terms, each with a weight of its own, as in Sachan et al., "Revisiting LSTM Networks for Semi-Supervised Text
Classification via Mixed Objective Function" (2019):

- adversarial training (Miyato et al., 2017): the labelled loss where a small change of the embeddings hurts most;
- virtual adversarial training (the same): how much the answer to a text changes there, which needs no label;
- entropy minimization: how unsure the answers to unlabelled texts are;
- distillation: the cross-entropy to a teacher's probabilities on unlabelled texts (Hinton et al., 2015).

After the labelled pass each adversarial term takes one of its own, forward and backward; entropy and distillation share
one. Nothing is kept from one to the next but the gradient of the embeddings.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, islice

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F

from .arguments import RNNSentTrainingArguments
from .errors import InputError
from .modeling_rnnsent import RNNSentForSequenceClassification
from .padding import PaddingCollator
from .sampling import batches_by_length, epoch_generator

# How far virtual adversarial training steps to find the direction to go, as a share of how far it then goes.
_PROBE = 0.1


@contextmanager
def watched(embedding: nn.Embedding) -> Iterator[list[Tensor]]:
    """Collects what the embedding gives out, each with its gradient kept."""
    outputs = []

    def keep(module: nn.Module, inputs: tuple, output: Tensor):
        output.retain_grad()
        outputs.append(output)

    hook = embedding.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        hook.remove()


@contextmanager
def perturbed(embedding: nn.Embedding, perturbation: Tensor):
    """Adds `(batch, time, size)` to what the embedding gives out."""
    hook = embedding.register_forward_hook(lambda module, inputs, output: output + perturbation)
    try:
        yield
    finally:
        hook.remove()


def perturbation(direction: Tensor, embeddings: Tensor, attention_mask: Tensor, epsilon: float) -> Tensor:
    """
    A step along `direction`, for every text one of Euclidean length epsilon * (root mean square of the embeddings).

    Miyato et al. normalize the embeddings to a variance of 1; here the step is measured by them instead.

    Args:
        direction, embeddings (`torch.Tensor` of shape `(batch, time, size)`): The direction is zero at padding.
        attention_mask (`torch.LongTensor` of shape `(batch, time)`): 0 at padding, whose embedding a language model's
            output layer has trained.
        epsilon (`float`): Length of the step.
    """
    squares = (embeddings.square() * attention_mask.unsqueeze(-1)).sum()
    scale = (squares / (attention_mask.sum().clamp(min=1) * embeddings.shape[-1])).sqrt()
    # First to a size whose squares are numbers: where answers are sure, gradients are very small.
    direction = direction / direction.abs().amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(direction.dtype).tiny)
    return epsilon * scale * direction / direction.norm(dim=(1, 2), keepdim=True).clamp(min=1e-30)


def divergence(logits: Tensor, reference: Tensor, problem_type: str | None) -> Tensor:
    """
    How far logits `(batch, num_labels)` are from the reference's, a mean over texts of shape `()`: Kullback-Leibler
    divergence (of several labels their sum), or squared error for regression.
    """
    if problem_type == "regression":
        return F.mse_loss(logits, reference)
    if problem_type == "multi_label_classification":
        probabilities = reference.sigmoid()
        gap = F.binary_cross_entropy_with_logits(logits, probabilities, reduction="none")
        gap = gap - F.binary_cross_entropy_with_logits(reference, probabilities, reduction="none")
        return gap.sum(dim=1).mean()
    return F.kl_div(logits.log_softmax(-1), reference.log_softmax(-1), reduction="batchmean", log_target=True)


def entropy(logits: Tensor, problem_type: str | None) -> Tensor:
    """How unsure logits `(batch, num_labels)` are, in nats (of several labels their sum): a mean over texts, `()`."""
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, logits.sigmoid(), reduction="none").sum(dim=1).mean()
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(dim=1).mean()


def soft_cross_entropy(logits: Tensor, probabilities: Tensor, problem_type: str | None) -> Tensor:
    """
    Cross-entropy of logits to a teacher's probabilities, both `(batch, num_labels)` (of several labels their sum),
    squared error to its values for regression: a mean over texts, `()`.
    """
    if problem_type == "regression":
        return F.mse_loss(logits, probabilities)
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, probabilities, reduction="none").sum(dim=1).mean()
    return F.cross_entropy(logits, probabilities)


def unlabeled_batches(
    dataset: Dataset, collator: PaddingCollator, batch_size: int, seed: int, start: int = 0, step: int = 1
) -> Iterator[dict[str, Tensor]]:
    """
    Batches by length without an end; in every round over the texts another order, the same for a seed.

    Args:
        dataset (`Dataset`): Columns `input_ids`, `length` and, where there is a teacher, `labels`.
        collator ([`PaddingCollator`]): Rows to a batch.
        batch_size (`int`): Texts of a batch.
        seed (`int`): Of the orders.
        start, step (`int`): The first batch to take and how many further on the next is: of a run taken up, or of
            several processes that share the texts.
    """

    def batches():
        lengths = dataset["length"][:]
        for epoch in count():
            yield from batches_by_length(lengths, batch_size, epoch_generator(seed, epoch))

    for indices in islice(batches(), start, None, step):
        rows = dataset[indices]
        yield collator([dict(zip(rows, values)) for values in zip(*rows.values())])


class Objectives:
    """
    The terms beside the labelled loss.

    Args:
        arguments ([`RNNSentTrainingArguments`]): The terms' weights and `adversarial_epsilon`.
        model ([`RNNSentForSequenceClassification`]): The model itself, without what wraps it for several processes.

    Raises:
        InputError: where there is a term, and the model is no classifier or has no embedding; for the entropy of a
            regression's values.
    """

    def __init__(self, arguments: RNNSentTrainingArguments, model: RNNSentForSequenceClassification):
        self.adversarial_weight = arguments.adversarial_weight
        self.virtual_adversarial_weight = arguments.virtual_adversarial_weight
        self.entropy_weight = arguments.entropy_weight
        self.distillation_weight = arguments.distillation_weight if arguments.teacher_name_or_path else 0.0
        self.epsilon = arguments.adversarial_epsilon
        self.need_unlabeled = arguments.needs_unlabeled_texts
        self.model, self.embedding = model, model.get_input_embeddings()
        self.problem_type = model.config.problem_type
        # The unit of the labelled loss, which of several labels is a mean.
        self.unit = {
            "regression": model.config.value_scale**2,
            "multi_label_classification": float(model.config.num_labels),
        }.get(self.problem_type, 1.0)
        if self.are_set and (self.embedding is None or not isinstance(model, RNNSentForSequenceClassification)):
            what = (
                "an embedding to change"
                if self.embedding is None
                else "labels to learn: it is not for language-modeling"
            )
            raise InputError(
                f"adversarial_weight, virtual_adversarial_weight, entropy_weight or a teacher needs {what}."
            )

        if self.entropy_weight > 0 and self.problem_type == "regression":
            raise InputError("entropy_weight is for classes: a value has no entropy.")

    @property
    def are_set(self) -> bool:
        """Whether there is any term."""
        return self.need_unlabeled or self.adversarial_weight > 0

    def terms(
        self,
        model: nn.Module,
        labeled_loss: Callable[[], Tensor],
        attention_mask: Tensor,
        embeddings: Tensor,
        unlabeled: dict[str, Tensor] | None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> Iterator[Tensor]:
        """
        The weighted terms one after the other; each must be taken backward before the next is asked for.

        Args:
            model (`nn.Module`): The model or what wraps it.
            labeled_loss (`Callable[[], torch.Tensor]`): The labelled pass once more, with the same dropout.
            attention_mask (`torch.Tensor` of shape `(batch, time)`): Of the labelled batch.
            embeddings (`torch.Tensor` of shape `(batch, time, size)`): Of the labelled pass, with their gradient.
            unlabeled (`dict[str, torch.Tensor]`, *optional*): A batch whose `labels`, if any, are a teacher's answers.
            scaler (`torch.amp.GradScaler`, *optional*): What keeps float16 gradients from vanishing.
        """
        if self.adversarial_weight > 0:
            gradient, embeddings = embeddings.grad.float(), embeddings.detach().float()
            step = perturbation(gradient, embeddings, attention_mask, self.epsilon)
            with perturbed(self.embedding, step):
                loss = labeled_loss()
            yield self.adversarial_weight * loss
        if unlabeled is not None:
            yield from self._unlabeled_terms(model, unlabeled, scaler)

    def _unlabeled_terms(
        self, model: nn.Module, inputs: dict[str, Tensor], scaler: torch.amp.GradScaler | None
    ) -> Iterator[Tensor]:
        inputs = dict(inputs)
        teacher = inputs.pop("labels", None)
        # The same dropout in every pass: only the perturbation is to make a difference.
        random = random_state(inputs["input_ids"].device)
        if self.entropy_weight > 0 or self.distillation_weight > 0:
            logits = model(**inputs).logits
            loss = 0.0
            if self.entropy_weight > 0:
                loss = loss + self.entropy_weight * entropy(logits, self.problem_type) / self.unit
            if self.distillation_weight > 0:
                taught = soft_cross_entropy(logits, teacher, self.problem_type) / self.unit
                loss = loss + self.distillation_weight * taught
            yield loss
        else:
            with torch.no_grad():
                logits = self.model(**inputs).logits
        if self.virtual_adversarial_weight > 0:
            logits = logits.detach()
            step = self._virtual_step(inputs, logits, random, scaler)
            random.restore()
            with perturbed(self.embedding, step):
                changed = model(**inputs).logits
            yield self.virtual_adversarial_weight * divergence(changed, logits, self.problem_type) / self.unit

    def _virtual_step(
        self,
        inputs: dict[str, Tensor],
        logits: Tensor,
        random: "random_state",
        scaler: torch.amp.GradScaler | None,
    ) -> Tensor:
        """Where the answer changes most: one step of the power iteration (Miyato et al., 2017, section 3)."""
        with torch.no_grad():
            embeddings = self.embedding(inputs["input_ids"]).float()
        mask = inputs["attention_mask"]
        direction = torch.randn_like(embeddings) * mask.unsqueeze(-1)
        probe = perturbation(direction, embeddings, mask, _PROBE * self.epsilon).requires_grad_()
        random.restore()
        with perturbed(self.embedding, probe):
            changed = divergence(self.model(**inputs).logits, logits, self.problem_type) / self.unit
        (gradient,) = torch.autograd.grad(changed if scaler is None else scaler.scale(changed), probe)
        return perturbation(gradient, embeddings, mask, self.epsilon)


class random_state:
    """The state of a device's random numbers, to return to."""

    def __init__(self, device: torch.device):
        self.module = torch if device.type == "cpu" else torch.get_device_module(device)
        self.state = self.module.get_rng_state()

    def restore(self):
        self.module.set_rng_state(self.state)
