"""CPR and CMD as the MIB benchmark defines them (Mueller et al., 2025), for node circuits.

For each size of a grid the best-scored nodes are kept and all others replaced, by what they write
in the corrupted partner's run (counterfactual) or on average (mean). What is kept counts as

    faithfulness = (m(circuit) - m(empty)) / (m(model) - m(empty)),

where in the empty circuit everything, the embedding included, is replaced. CPR is the area under
faithfulness over the share of nodes, CMD the area of ``|1 - faithfulness|``.

This is not the ratio of Lan et al., ``m(circuit) / m(model)``, which the rest of the book calls the
share kept: there nothing is subtracted, and the embedding is never replaced.

Checked against the benchmark's public code: sizes are rounded down, the areas are trapezoids from
0.1% to 100% (so 0.999 is perfect), and a node without a score, here the embedding, is in every
circuit but the empty one. For CPR nodes are ranked by their scores, for CMD by their sizes.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from seqcirc_utils.ablation.evaluator import Evaluator, Metric, logit_difference
from seqcirc_utils.components import Component, Shape, components, sources
from seqcirc_utils.errors import CannotDo, UserError
from seqcirc_utils.methods.slopes import Pairs

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""MIB's grid: shares of all nodes that are kept."""


@dataclass(frozen=True)
class Judge:
    """Prompts to judge circuits on, with one kind of ablation.

    Attributes:
        evaluator: The prompts, and what replaced components write.
        empty: The metric of the empty circuit ``[n]``.
        metric: What is measured.
    """

    evaluator: Evaluator
    empty: torch.Tensor
    metric: Metric = logit_difference

    @classmethod
    def counterfactual(cls, pairs: Pairs) -> "Judge":
        """Replaced components write what they do in the corrupted partner's run."""
        empty = _read(pairs.clean, pairs.metric, pairs.corrupted.residual[-1][None])
        return cls(pairs.clean, empty[0], pairs.metric)

    @classmethod
    def mean(cls, evaluator: Evaluator, last: torch.Tensor, metric: Metric) -> "Judge":
        """Replaced components write a mean.

        Args:
            evaluator: Its replacement is that mean.
            last: The mean of the last stream over the same prompts ``[1, pos, d_model]``.
            metric: What is measured.
        """
        n = len(evaluator.prompts)
        return cls(evaluator, _read(evaluator, metric, last.expand(1, n, -1, -1))[0], metric)

    @property
    def whole(self) -> torch.Tensor:
        """The metric of the whole model ``[n]``."""
        return _read(self.evaluator, self.metric, self.evaluator.run.residual[-1][None])[0]

    def kept(self, circuits: Sequence[Collection[Component]]) -> torch.Tensor:
        """The metric with everything outside each circuit replaced ``[circuit, n]``."""
        out = self.evaluator.outside(circuits)
        return self.evaluator.each(out, lambda s: (self.metric(self.evaluator, s).cpu(),))[0]

    def faithfulness(self, values: torch.Tensor) -> np.ndarray:
        """MIB's faithfulness of mean metrics ``[…, n]``: a ratio of means over prompts.

        Raises:
            CannotDo: when the whole model is not ahead of the empty circuit.
        """
        gap = (self.whole.mean() - self.empty.mean()).item()
        if not gap > 0:
            raise CannotDo(
                f"the whole model is not ahead of the empty circuit (by {gap:.3f}): MIB's "
                "faithfulness means nothing here. Choose other prompts."
            )
        return ((values.double().mean(-1) - self.empty.double().mean()) / gap).numpy()


@torch.no_grad()
def _read(evaluator: Evaluator, metric: Metric, stream: torch.Tensor) -> torch.Tensor:
    return metric(evaluator, stream).cpu()


def sizes(n: int, shares: Sequence[float] = SHARES) -> list[int]:
    """How many of ``n`` scored nodes (or edges) each share of the grid keeps: rounded down."""
    return [int(share * n) for share in shares]


def ranking(model: Shape, values: np.ndarray, absolute: bool = False) -> list[Component]:
    """Components by score ``[component]``, the best first; ties by the model's order.

    Args:
        model: Whose components they are.
        values: Their scores.
        absolute: By the size of the scores, as for CMD.

    Raises:
        UserError: for scores that are not one number for each component.
    """
    everything = components(model)
    if values.shape != (len(everything),) or not np.isfinite(values).all():
        raise UserError(
            f"scores must be {len(everything)} finite numbers, one a component, "
            f"got shape {values.shape}."
        )
    order = np.argsort(-(np.abs(values) if absolute else values), kind="stable")
    return [everything[i] for i in order]


def areas(faithfulness: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """MIB's CPR (more is better) and CMD (less is better) of faithfulness on its grid."""
    values = np.asarray(faithfulness, dtype=float)
    return float(np.trapezoid(values, SHARES)), float(np.trapezoid(np.abs(1 - values), SHARES))


def weighted_edge_count(
    nodes: Iterable[Component], model: Shape, *, possible_only: bool = False
) -> int:
    """MIB's count of the edges of a node circuit: all between nodes that are in it.

    The embedding and the logits are in every circuit; each q, k and v of a head is a reader.

    Args:
        nodes: The circuit.
        model: Whose components they are.
        possible_only: Count what the released code means to. For node circuits it counts every pair
            of a writer and a reader that are in, also where the reader comes first.
    """
    inside = sorted(set(nodes))
    unknown = set(inside) - set(components(model))
    if unknown:
        raise UserError(f"no components of this model: {', '.join(map(str, sorted(unknown)))}.")
    readers = {node: len(sources(node)) for node in inside}
    if not possible_only:
        return (1 + len(inside)) * (sum(readers.values()) + 1)

    def before(reader: Component) -> int:
        own = reader.head is None  # an MLP reads the heads of its own layer
        return sum(w.layer < reader.layer + (own and w.head is not None) for w in inside)

    return sum((1 + before(r)) * k for r, k in readers.items()) + 1 + len(inside)
