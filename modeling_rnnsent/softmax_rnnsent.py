"""
The cross-entropy of the next word against a sample of the vocabulary, which a CPU can afford.

A softmax over 50,000 words costs many times what a recurrent layer does. In training it is enough to compare the right
word with a few thousand others, drawn anew for every batch and shared by its tokens, when the logit of each is lowered
by the logarithm of how often it is drawn: the sum over the sample is then that over the vocabulary, but for the right
word, in the mean (importance sampling: Bengio & Senecal, 2008; Jean et al., 2015, section 3). This file travels with
every checkpoint and imports torch alone.
"""

import math

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Tokens compared with the sample at a time: the scores of all of them would take a CPU more time to store than to
# compute. A GPU is given more at a time, or it waits for the next.
_CPU_CHUNK, _GPU_CHUNK = 2048, 16384


def sampled_cross_entropy(hidden: Tensor, targets: Tensor, weight: Tensor, num_samples: int) -> Tensor:
    """
    Sum over tokens of an estimate of `F.cross_entropy(hidden @ weight.T, targets)`.

    Words are drawn from the log-uniform distribution P(id) = log((id + 2) / (id + 1)) / log(vocabulary + 1), Zipf's law
    for ids that go by falling frequency, as those of `tokenization.build_tokenizer` do.

    Args:
        hidden (`torch.FloatTensor` of shape `(tokens, size)`): What the next word is predicted from.
        targets (`torch.LongTensor` of shape `(tokens,)`): Ids of the next words.
        weight (`torch.FloatTensor` of shape `(vocab_size, size)`): A row for every word.
        num_samples (`int`): Words to compare with.

    Returns:
        `torch.FloatTensor` of shape `()`. It can be differentiated once.
    """
    vocab_size = weight.shape[0]
    uniform = torch.rand(num_samples, device=hidden.device, dtype=torch.float32)
    samples = ((vocab_size + 1) ** uniform).long().sub(1).clamp(0, vocab_size - 1)
    return _SampledCrossEntropy.apply(
        hidden,
        F.embedding(targets, weight),
        F.embedding(samples, weight),
        targets,
        samples,
        torch.log(torch.log1p(1 / (samples + 1.0)) * (num_samples / math.log(vocab_size + 1))),
    )


class _SampledCrossEntropy(Function):
    """Computes the gradients with the loss, chunk by chunk, since the scores of a chunk are at hand only then."""

    @staticmethod
    def forward(ctx, hidden, right_rows, sample_rows, targets, samples, log_expected_counts) -> Tensor:
        loss = torch.zeros((), device=hidden.device)
        grads = [torch.empty_like(hidden), torch.empty_like(right_rows), torch.zeros_like(sample_rows)]
        chunk = _CPU_CHUNK if hidden.device.type == "cpu" else _GPU_CHUNK
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            states, right = hidden[rows], right_rows[rows]
            right_score = (states * right).sum(dim=1, dtype=torch.float32)
            scores = (states @ sample_rows.t()).float().sub_(log_expected_counts)
            scores.masked_fill_(samples == targets[rows].unsqueeze(1), -torch.inf)
            top = torch.maximum(right_score, scores.amax(dim=1))
            scores = scores.sub_(top.unsqueeze(1)).exp_()
            total = scores.sum(dim=1) + (right_score - top).exp()
            log_total = total.log() + top
            loss += (log_total - right_score).sum()
            shares = scores.div_(total.unsqueeze(1)).to(states.dtype)
            excess = ((right_score - log_total).exp() - 1).unsqueeze(1)
            grads[0][rows] = shares @ sample_rows + excess * right
            grads[1][rows] = excess * states
            grads[2] += shares.t() @ states
        ctx.save_for_backward(*grads)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor):
        return *(grad * grad_output for grad in ctx.saved_tensors), None, None, None
