"""Mean ablation as the released code does it, with the fault that its numbers carry (B34)."""

from collections.abc import Iterable

import torch

from seqcirc_utils.ablation.engine import Replay, Trace
from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.pruning import Pruning
from seqcirc_utils.ablation.replay import MEANS_BATCH, Activations, Run, hook_name
from seqcirc_utils.components import Component


class ShiftingMeans:
    """The means that removed MLPs write when they are taken from a model without the removed heads.

    The released code installs the ablation of heads first, and takes the MLPs' means afterwards.

    Args:
        means: The means of the whole model ``[layer, 1, pos, …]``; those of heads are used.
        corrupted: The run of the corrupted prompts that they are the means of.
    """

    def __init__(self, means: Activations, corrupted: Run) -> None:
        self.replay = Replay(corrupted, means, last=corrupted.residual.shape[2])
        self.present = means
        self._streams = list(corrupted.residual)
        self._pending = means, self._streams

    @torch.no_grad()
    def without(self, heads: Iterable[Component], start: int) -> Activations:
        """The means without some heads, of which those below block ``start`` are out already.

        Args:
            heads: All heads that are out.
            start: The first block in which something changed since :meth:`accept`.
        """
        trace: Trace = {}
        masks = self.replay.masks(heads)
        final = self.replay.replay([masks], self._streams[start], start, trace=trace)
        layers = range(start, self.replay.model.n_layers)
        mlp = self.present.mlp.clone()
        for layer in layers:
            mlp[layer] = trace[hook_name(layer, "mlp")].mean(0)
        streams = [trace[hook_name(layer, "in")] for layer in layers[1:]]
        found = Activations(self.present.z, mlp)
        self._pending = found, [*self._streams[: start + 1], *streams, final[0]]
        return found

    def accept(self) -> None:
        """Make the last means the present ones."""
        self.present, self._streams = self._pending


def shifted_means(means: Activations, corrupted: Run, removed: Iterable[Component]) -> Activations:
    """The means of a circuit as the released code takes them: MLPs' from a model without its heads.

    Args:
        means: The means of the whole model ``[layer, 1, pos, …]``.
        corrupted: The run of the corrupted prompts.
        removed: The components outside the circuit.
    """
    heads, n = [c for c in removed if c.head is not None], len(corrupted.tokens)
    mlp = torch.zeros_like(means.mlp)
    for rows in torch.arange(n).split(MEANS_BATCH):
        some = ShiftingMeans(means, corrupted[rows.tolist()]).without(heads, 0)
        mlp += some.mlp * (len(rows) / n)
    return Activations(means.z, mlp)


class ReleasedPruning(Pruning):
    """A circuit that loses components as in the released node search, means shifting (B34).

    Args:
        evaluator: Prompts and the whole model's means.
        corrupted: The run of the corrupted prompts that these are the means of.
        removed: Components that are out from the beginning.
    """

    def __init__(
        self, evaluator: Evaluator, corrupted: Run, removed: Iterable[Component] = ()
    ) -> None:
        self._means = ShiftingMeans(evaluator.replacement, corrupted)
        self._moved = False
        super().__init__(evaluator, removed)

    def try_without(self, components: Iterable[Component]) -> torch.Tensor:
        """Logit differences ``[n]`` without these components too, means taken anew.

        Raises:
            UserError: for one that is not finite.
        """
        gone = frozenset(components)
        heads = {c for c in gone or self.removed if c.head is not None}
        means, self._moved = self._means.present, bool(heads)
        if heads:
            out = {c for c in self.removed | gone if c.head is not None}
            means = self._means.without(out, min(c.layer for c in heads))
        self.evaluator = self.evaluator.with_(replacement=means)
        return super().try_without(gone)

    def accept(self) -> None:
        """Make the last trial the present state."""
        super().accept()
        if self._moved:
            self._means.accept()
