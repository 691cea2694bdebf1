"""Metrics beside the logit difference: what a last stream says of the answer."""

from collections.abc import Sequence

import torch

from seqcirc_utils.ablation.evaluator import Evaluator, Metric
from seqcirc_utils.models.capabilities import logits
from seqcirc_utils.statistics import finite


def answer_log_prob(evaluator: Evaluator, stream: torch.Tensor) -> torch.Tensor:
    """Log probability of the answer, in nats."""
    ids = evaluator.answers.answer_ids.to(stream.device)
    final = evaluator.model.bridge.ln_final(stream[..., -1, :])
    read = logits(evaluator.model, final, slice(None)).float()  # [candidate, n, vocab]
    own = read.gather(-1, ids.expand(read.shape[:-1])[..., None])[..., 0]
    return finite(own - read.logsumexp(-1))


def answer_over(members: Sequence[int]) -> Metric:
    """The metric logit(answer) - mean logit of the other members.

    Args:
        members: The token of every member, the answers among them.
    """

    def metric(evaluator: Evaluator, stream: torch.Tensor) -> torch.Tensor:
        ids = torch.tensor(members, device=stream.device)
        answers = evaluator.answers.answer_ids.to(stream.device)
        final = evaluator.model.bridge.ln_final(stream[..., -1, :])
        read = logits(evaluator.model, final, ids).float()  # [candidate, n, member]
        own = ids == answers[:, None]  # [n, member]
        answer = (read * own).sum(-1)
        return finite(answer - (read * ~own).sum(-1) / (~own).sum(-1))

    return metric


def minus_kl(evaluator: Evaluator, stream: torch.Tensor) -> torch.Tensor:
    """Minus the Kullback-Leibler divergence from the whole model, in nats."""
    final = evaluator.model.bridge.ln_final(stream[..., -1, :])
    read = logits(evaluator.model, final, slice(None)).float().log_softmax(-1)
    own = evaluator.reference
    return finite((own.exp() * (read - own)).sum(-1))
