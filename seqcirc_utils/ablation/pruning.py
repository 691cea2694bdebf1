"""A circuit that loses components one after another; each trial starts where it differs."""

from collections.abc import Iterable

import torch

from seqcirc_utils.ablation.engine import Trace
from seqcirc_utils.ablation.evaluator import Evaluator, Metric, logit_difference
from seqcirc_utils.ablation.replay import hook_name
from seqcirc_utils.components import Component


class Pruning:
    """A circuit that loses components one after another; each trial starts where it differs.

    The stream that enters every block is kept, so a trial of a component in layer ``l`` runs blocks
    ``l`` and up only, whatever was removed before.

    Args:
        evaluator: The evaluator.
        removed: Components that are out from the beginning.
        metric: What trials are scored by.

    Attributes:
        score: Its values for the present state ``[n]``.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        removed: Iterable[Component] = (),
        metric: Metric = logit_difference,
    ) -> None:
        self.evaluator, self.metric = evaluator, metric
        self.removed = set(removed)
        self._streams = list(evaluator.run.residual)
        self._pending: tuple[frozenset[Component], list[torch.Tensor], torch.Tensor]
        with torch.no_grad():
            self.score = metric(evaluator, self._streams[-1][None])[0].cpu()
        if self.removed:
            self.try_without(())
            self.accept()

    @torch.no_grad()
    def try_without(self, components: Iterable[Component]) -> torch.Tensor:
        """The metric's values ``[n]`` without these components too.

        Raises:
            UserError: for one that is not finite.
        """
        gone = frozenset(components)
        changed = gone or self.removed
        start = min(c.layer for c in changed)
        masks = self.evaluator.masks(self.removed | gone)
        trace: Trace = {}
        final = self.evaluator.replay([masks], self._streams[start], start, trace=trace)
        score = self.metric(self.evaluator, final)[0].cpu()
        layers = range(start + 1, self.evaluator.model.n_layers)
        streams = [trace[hook_name(layer, "in")] for layer in layers]
        self._pending = gone, [*self._streams[: start + 1], *streams, final[0]], score
        return score

    def accept(self) -> None:
        """Make the last trial the present state."""
        gone, self._streams, self.score = self._pending
        self.removed |= gone
