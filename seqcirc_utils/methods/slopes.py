"""Slopes of a metric at what components write, and what they say of replacing a write.

All gradient methods are one product: (clean - corrupted write) times a slope of the metric at that
write. They differ in where, or how, the slope is taken.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from seqcirc_utils.ablation.engine import Masks, Replay, Trace
from seqcirc_utils.ablation.evaluator import Evaluator, Metric, logit_difference
from seqcirc_utils.ablation.replay import Activations, Run, hook_name, record
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.prompts import Prompts


@dataclass(frozen=True)
class Pairs:
    """Clean prompts and their corrupted partners, both recorded.

    Attributes:
        clean: Runs the clean prompts; replaced components write what the partner's do.
        corrupted: The run of the corrupted prompts.
        metric: What is explained; scored by the clean prompts' answers in both runs.
    """

    clean: Evaluator
    corrupted: Run
    metric: Metric

    @classmethod
    def recorded(
        cls, model: Model, clean: Prompts, corrupted: Prompts, metric: Metric = logit_difference
    ) -> "Pairs":
        """Run both sets.

        Raises:
            UserError: for sets of different shapes, and as :class:`Evaluator` does.
        """
        other = record(model, corrupted)
        own = Evaluator(model, clean, other.activations, run=record(model, clean))
        return cls(own, other, metric)

    @cached_property
    def difference(self) -> Activations:
        """Clean minus corrupted writes."""
        own, new = self.clean.run.activations, self.corrupted.activations
        return Activations(own.z - new.z, own.mlp - new.mlp)

    def between(self, share: float) -> torch.Tensor:
        """The embedding, so much of the way from corrupted to clean ``[n, pos, d_model]``."""
        return torch.lerp(self.corrupted.residual[0], self.clean.run.residual[0], share)

    def nothing(self) -> Masks:
        """No component."""
        return self.clean.masks(())


def slopes(
    pairs: Pairs, embedding: torch.Tensor, runner: Replay | None = None
) -> tuple[Activations, torch.Tensor]:
    """Slopes of the metric, each prompt's own, at every write and at the embedding.

    Args:
        pairs: The prompts and the metric.
        embedding: What enters the first block ``[n, pos, d_model]``.
        runner: Runs the prompts; the pairs' own when ``None``.

    Returns:
        Slopes (zero where nothing is read any more), and the embedding's ``[n, pos, d_model]``.
    """
    evaluator, trace = pairs.clean, Trace()
    with torch.enable_grad():
        stream = embedding.detach().requires_grad_()
        final = (runner or evaluator).replay([pairs.nothing()], stream, 0, trace=trace)
        names = [name for name in trace if not name.endswith("hook_in")]
        found = torch.autograd.grad(
            pairs.metric(evaluator, final).sum(),
            [stream, *(trace[name] for name in names)],
            allow_unused=True,
        )
    slope = dict(zip(names, found[1:], strict=True))
    own = evaluator.run.activations
    kinds = {"z": torch.zeros_like(own.z), "mlp": torch.zeros_like(own.mlp)}
    for layer in range(len(own.z)):
        for kind, whole in kinds.items():
            one = slope.get(hook_name(layer, kind))
            if one is not None:  # after the last attention only the last position is computed
                whole[layer][:, -one.shape[1] :] = one
    assert found[0] is not None, "the metric does not depend on the embedding"
    return Activations(**kinds), found[0]


def products(change: Activations, slope: Activations) -> torch.Tensor:
    """(Change of write) times slope, summed within each component ``[component, n]``.

    Components stand in the order of :func:`~seqcirc_utils.components.components`.
    """
    heads = torch.einsum("lnphd,lnphd->lhn", change.z, slope.z)
    mlps = torch.einsum("lnpd,lnpd->ln", change.mlp, slope.mlp)
    return torch.cat([heads, mlps[:, None]], 1).flatten(0, 1)
