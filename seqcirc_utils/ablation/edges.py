"""Edges: which component's write each part of a circuit needs to read, exactly and fast.

Inside a node circuit, every reader (the q, k or v of a head, an MLP, the logits) reads the residual
stream as a sum: embedding, and for each component below it either what that component writes now
(the edge is kept) or its replacement (the edge is cut, or the component is not in the circuit).

``tests/ablation/test_edges.py`` holds the results to plain passes and to TransformerLens.
"""

from collections.abc import Iterable, Sequence

import torch

from seqcirc_utils.ablation.edge_replay import EdgeReplay, Graph, State
from seqcirc_utils.ablation.engine import scheduled
from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.components import Component, Edge
from seqcirc_utils.errors import UserError
from seqcirc_utils.models.capabilities import require

_SO = (
    "a single component's write cannot be kept or cut along one edge: edge circuits do not apply. "
    "Node circuits do."
)


class EdgeEvaluator:
    """Scores any set of kept edges of a node circuit.

    Args:
        evaluator: Prompts, and what cut edges and components outside the circuit carry.
        nodes: The node circuit.

    Attributes:
        graph: The circuit's components and edges.
        whole: The circuit with every edge kept, as it was run.
        score: Logit differences ``[n]`` with every edge kept.

    Raises:
        UserError: for unknown components, and for a model whose components do not write into, and
            read from, one sum.
    """

    def __init__(self, evaluator: Evaluator, nodes: Iterable[Component]) -> None:
        self.evaluator, self.graph = evaluator, Graph(nodes)
        evaluator.masks(self.nodes)  # refuses unknown components
        require(evaluator.model, "heads in_turn", _SO)
        if not evaluator.run.by_parts:
            self._refuse(
                "reads later positions, or does not run attention and then the MLP by itself"
            )
        self.replay = EdgeReplay(evaluator, self.graph)
        self.whole = self.replay.state(self.graph.matrix(self.edges))
        expected = evaluator.kept([self.nodes]).logit_diff[0]
        close = torch.finfo(evaluator.replacement.mlp.dtype).eps ** 0.5
        if not torch.allclose(self.score, expected, close, close):
            self._refuse("does not add up what its components write")

    def _refuse(self, why: str) -> None:
        raise UserError(f"{self.evaluator.model.facts.title} {why}, so {_SO}")

    @property
    def nodes(self) -> list[Component]:
        """The circuit's components, in the order of computation."""
        return self.graph.nodes

    @property
    def edges(self) -> list[Edge]:
        """All edges between them, and into the logits."""
        return self.graph.edges

    @property
    def score(self) -> torch.Tensor:
        """Logit differences ``[n]`` with every edge kept."""
        return self.whole.score

    def differences(
        self, sets: Sequence[Iterable[Edge]], *, progress: str | None = None
    ) -> torch.Tensor:
        """Logit differences ``[set, n]`` with each set of edges kept and all others cut."""
        if not sets:
            return self.score[None][:0]
        keeps = [self.graph.matrix(edges) for edges in sets]
        changed = [(keep != self.whole.keep).any(1).nonzero().flatten().tolist() for keep in keeps]
        # Candidates that differ from the whole at the same component share a batch.
        nodes = [self.graph.readers[min(c, default=-1)][0] for c in changed]
        starts = [len(self.nodes) if n is None else self.nodes.index(n) for n in nodes]

        @torch.no_grad()
        def batch(rows: list[int]) -> tuple[torch.Tensor]:
            final, _ = self.replay.replay(torch.stack([keeps[i] for i in rows]), self.whole)
            return (self.evaluator.difference(final).cpu(),)

        return scheduled(starts, self.evaluator.step, batch, progress)[0]

    def without(
        self, sets: Sequence[Iterable[Edge]], *, progress: str | None = None
    ) -> torch.Tensor:
        """Logit differences ``[set, n]`` with each set of edges cut and all others kept."""
        everything = set(self.edges)
        return self.differences([everything - set(cut) for cut in sets], progress=progress)

    def estimate(self, kept: Iterable[Edge] | None = None, rows: int = 0) -> dict[Edge, float]:
        """First-order change of the mean logit difference if one more edge were cut.

        Edge attribution patching at an edge circuit: (replacement - write) of the sender times the
        gradient at the receiver's input, before its norm. One forward and one backward pass.

        Args:
            kept: The present edge circuit; all edges when ``None``.
            rows: How many prompts to use; all when 0.

        Returns:
            Every kept edge's estimate, in logits.
        """
        keep = self.whole.keep if kept is None else self.graph.matrix(kept)
        part = EdgeReplay(self.evaluator.first(rows), self.graph)
        inputs: dict[int, torch.Tensor] = {}
        with torch.enable_grad():
            final, changes = part.replay(keep[None], inputs=inputs)
            total = part.evaluator.difference(final).mean()
            found = torch.autograd.grad(total, list(inputs.values()), allow_unused=True)
        slopes = dict(zip(inputs, found, strict=True))  # reader to [1, n, p, d_model]
        effects = {}
        for edge, (reader, sender) in self.graph.place.items():
            if keep[reader, sender]:
                slope = slopes.get(reader)
                effects[edge] = 0.0
                if slope is not None:
                    change = changes[sender].detach()[:, :, -slope.shape[2] :]
                    effects[edge] = -float((change * slope).sum())
        return effects


class EdgePruning:
    """An edge circuit that loses edges one after another; each trial computes what it changes.

    Args:
        circuit: The evaluator of edge circuits.
        removed: Edges that are cut from the beginning.
    """

    def __init__(self, circuit: EdgeEvaluator, removed: Iterable[Edge] = ()) -> None:
        self.circuit = circuit
        self.removed = set(removed)
        self._state = circuit.whole
        self._pending: tuple[frozenset[Edge], State]
        if self.removed:
            self.try_without(())
            self.accept()

    @property
    def score(self) -> torch.Tensor:
        """Logit differences ``[n]`` of the present edge circuit."""
        return self._state.score

    def try_without(self, edges: Iterable[Edge]) -> torch.Tensor:
        """Logit differences ``[n]`` without these edges too."""
        gone = frozenset(edges)
        keep = self.circuit.graph.matrix(set(self.circuit.edges) - self.removed - gone)
        self._pending = gone, self.circuit.replay.state(keep, self._state)
        return self._pending[1].score

    def accept(self) -> None:
        """Make the last trial the present state."""
        gone, self._state = self._pending
        self.removed |= gone
