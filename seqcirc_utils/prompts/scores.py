"""Scores of a prompt at its end: logit difference, accuracy, and intervals over prompts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.prompts import Prompts
from seqcirc_utils.statistics import finite


@dataclass(frozen=True)
class Scores:
    """What the final position says, per prompt; the last axis is the prompt.

    Attributes:
        logit_diff: logit(answer) - logit(last member), the paper's metric.
        correct: Whether the answer is the top token of the whole vocabulary.
        answer_prob: Probability of the answer.
        last_prob: Probability of the last member.
        kl: Kullback-Leibler divergence from the reference (nats), usually the whole model; zero
            where no reference was given.
    """

    logit_diff: torch.Tensor
    correct: torch.Tensor
    answer_prob: torch.Tensor
    last_prob: torch.Tensor
    kl: torch.Tensor

    @classmethod
    def read(
        cls, logits: torch.Tensor, prompts: Prompts, reference: torch.Tensor | None = None
    ) -> "Scores":
        """Score final-position logits ``[..., n, vocab]`` against the prompts' answers.

        Args:
            logits: Final-position logits.
            prompts: Say which token is the answer, and which the last member.
            reference: Log probabilities ``[n, vocab]`` to measure the divergence from.

        Raises:
            UserError: for logits that are not finite.
        """
        logits = finite(logits).float()
        shape = logits.shape[:-1] + (1,)
        answer_ids = prompts.answer_ids.to(logits.device)[:, None].expand(shape)
        last_ids = prompts.last_ids.to(logits.device)[:, None].expand(shape)
        answer, last = logits.gather(-1, answer_ids)[..., 0], logits.gather(-1, last_ids)[..., 0]
        norm = logits.logsumexp(-1)
        kl = torch.zeros_like(norm)
        if reference is not None:
            kl = (reference.exp() * (reference - logits)).sum(-1) + norm
        return cls(
            logit_diff=(answer - last).cpu(),
            correct=(logits.argmax(-1) == answer_ids[..., 0]).cpu(),
            answer_prob=(answer - norm).exp().cpu(),
            last_prob=(last - norm).exp().cpu(),
            kl=kl.clamp(min=0).cpu(),
        )

    def __getitem__(self, rows: Any) -> "Scores":
        """The scores of some rows (the first axis)."""
        return Scores(*(getattr(self, f)[rows] for f in vars(self)))

    @classmethod
    def concatenate(cls, parts: list["Scores"], dim: int = 0) -> "Scores":
        """Join scores along a dimension."""
        return cls(*(torch.cat([getattr(p, f) for p in parts], dim) for f in cls.__annotations__))


@torch.no_grad()
def score(model: Model, prompts: Prompts, batch: int = 16) -> Scores:
    """Run the whole model on the prompts, plainly."""
    parts = []
    for rows in torch.arange(len(prompts)).split(batch):
        part = prompts[rows.tolist()]
        logits = model.bridge(part.tokens.to(model.device))[:, -1]
        parts.append(Scores.read(logits, part))
    return Scores.concatenate(parts)


def paper_filter(model: Model) -> Callable[[Prompts], torch.Tensor]:
    """The paper's filter: the answer is on top, with more than twice the last member's probability.

    Returns:
        A function ``prompts -> bool [n]`` for :func:`seqcirc_utils.prompts.drawing.prompt_sets`.
    """

    def keep(prompts: Prompts) -> torch.Tensor:
        return passes_paper_filter(score(model, prompts))

    return keep


def passes_paper_filter(scores: Scores) -> torch.Tensor:
    """Which prompts the paper's filter keeps ``[n]``."""
    return scores.correct & (scores.answer_prob > 2 * scores.last_prob)
