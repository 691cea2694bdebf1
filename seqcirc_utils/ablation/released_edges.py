"""The released edge step, and what was meant by it: path patching in a node circuit, in pieces.

A sender's pass runs the circuit with the sender's write changed; what a receiver makes of it is
put into a run of the circuit that is whole otherwise. What else the sender's pass holds still, what
the changed write is, and even which component is changed, differs between the released code and
what it was meant to do. Each difference is one of :data:`PIECES`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import Activations, Run
from seqcirc_utils.components import Component, Edge, edges_of
from seqcirc_utils.errors import UserError
from seqcirc_utils.models.capabilities import before, require

CORRUPTED, ANEW, UNFROZEN, SKIPPED = "corrupted run", "MLPs anew", "nothing frozen", "own layer"
B12, B13 = "B12", "B13"
PIECES = {
    CORRUPTED: "a cut edge carries each prompt's own corrupted run of the circuit, not a mean",
    ANEW: "behind a head that sends, MLPs are computed anew; only the other heads are frozen",
    UNFROZEN: "behind an MLP that sends, nothing is frozen",
    SKIPPED: "an edge from a head into the MLP of its own layer is not tried",
    B12: "MLP into head: the heads of the MLP's layer are cut, nothing behind them is frozen",
    B13: "MLP into logits: heads and MLPs of all layers tried so far, from the first up, are cut",
}
"""The ways in which the released edge step differs from the one meant. All: as released."""

Change = Callable[[str, int, torch.Tensor], torch.Tensor]
"""From a kind (``z``, ``mlp``), a layer and what was computed there to what is written instead."""


@dataclass
class _Pass:
    """A run of the circuit; all ``[n, pos, …]``, by layer.

    Attributes:
        streams: What enters each block; at the end, the last one's output.
        middles: The stream between attention and MLP.
        z: What heads hold ``[n, pos, head, d_head]``.
        mlp: What MLPs write.
    """

    streams: list[torch.Tensor] = field(default_factory=list)
    middles: list[torch.Tensor] = field(default_factory=list)
    z: list[torch.Tensor] = field(default_factory=list)
    mlp: list[torch.Tensor] = field(default_factory=list)


class ReleasedEdges:
    """Scores of a node circuit with single edges cut, as released or with some pieces as meant.

    Args:
        evaluator: Prompts, and the means that components outside the circuit write (for those of
            the released code see :func:`~seqcirc_utils.ablation.released.shifted_means`).
        nodes: The node circuit.
        corrupted: The run of corrupted prompts, as many as there are prompts: row by row.
        pieces: Which of :data:`PIECES` are as in the released code.

    Raises:
        UserError: for unknown components or pieces, a corrupted run that does not fit, and a model
            whose components do not write into, and read from, one sum.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        nodes: Iterable[Component],
        corrupted: Run,
        pieces: Iterable[str] = PIECES,
    ) -> None:
        require(evaluator.model, "heads in_turn", "single edges cannot be cut.")
        self.evaluator, self.run, self.means = evaluator, evaluator.run, evaluator.replacement
        if unknown := set(pieces) - set(PIECES):
            raise UserError(f"unknown pieces {unknown}: there are {', '.join(PIECES)}.")
        if corrupted.residual.shape != self.run.residual.shape:
            raise UserError("clean and corrupted prompts must be as many, and of one length.")
        self.nodes, self.pieces = sorted(set(nodes)), set(pieces)
        (outside,) = evaluator.outside([self.nodes])
        self._heads, self._mlps = evaluator.masks(outside)
        with torch.no_grad():
            self.clean = self._walk(self.run.residual[0])
            other = self._walk(corrupted.residual[0])
        self.new = self.means
        if CORRUPTED in self.pieces:
            self.new = Activations(torch.stack(other.z), torch.stack(other.mlp))
        self.edges = [e for e in edges_of(self.nodes) if not self._skipped(e)]

    @property
    def score(self) -> torch.Tensor:
        """Logit differences ``[n]`` of the whole circuit."""
        return self.evaluator.difference(self.clean.streams[-1][None])[0].cpu()

    def without(self, edges: Sequence[Edge], screen: float = 0.0) -> torch.Tensor:
        """Mean logit differences ``[edge]`` with each edge cut alone.

        Args:
            edges: Some of :attr:`edges`, with those between that B13 needs.
            screen: Cuts whose estimated effect on the mean is smaller are not run: their score is
                the estimate (gradient times change of what the receiver computes). 0 runs all.
        """
        found, slopes, own = {}, self._slopes(), self.score.mean().item()
        waiting: dict[int, list[tuple[Edge, torch.Tensor]]] = {}
        for (sender, reads), group in _by_pass(edges).items():
            with torch.no_grad():
                sent = self._sent(sender, reads)
                values = self._received(sent, group)
            for edge, value in values.items():
                if edge.receiver is None:
                    found[edge] = self.evaluator.difference(value[None]).mean().item()
                    continue
                layer, head = edge.receiver
                kind = "mlp" if head is None else "z"
                at = (slice(None), slice(None)) + (() if head is None else (head,))
                change = value - getattr(self.clean, kind)[layer][at]
                found[edge] = own + float((change * slopes[kind, layer][at]).sum())
                if abs(found[edge] - own) >= screen:
                    waiting.setdefault(layer, []).append((edge, value))
        for layer, items in waiting.items():
            for i in range(0, len(items), self.evaluator.step):
                some = items[i : i + self.evaluator.step]
                for (edge, _), score in zip(some, self._patched(layer, some), strict=True):
                    found[edge] = score
        return torch.tensor([found[edge] for edge in edges])

    def _skipped(self, edge: Edge) -> bool:
        """Whether the released code does not try an edge."""
        sender, receiver = edge.sender, edge.receiver
        own = receiver is not None and sender.layer == receiver.layer
        return SKIPPED in self.pieces and own

    def _walk(
        self,
        stream: torch.Tensor,
        change: Change = lambda kind, layer, own: own,
        start: int = 0,
        given: bool = False,
    ) -> _Pass:
        """Run the circuit from block ``start`` on a stream ``[rows, pos, d_model]``.

        Args:
            stream: What enters the block; rows are some copies of the prompts.
            change: What is written instead of what was computed.
            start: The first block.
            given: ``change`` gives MLPs' writes without reading what was computed: do not compute.
        """
        found, n = _Pass(), self.run.residual.shape[1]

        def outside(mask: torch.Tensor, new: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
            rows = own.unflatten(0, (-1, n))
            return torch.where(mask.to(own.device), new, rows).flatten(0, 1)

        for layer in range(start, self.run.model.n_layers):

            def act(z: torch.Tensor, layer: int = layer) -> torch.Tensor:
                z = outside(self._heads[layer][:, None], self.means.z[layer], z)
                found.z.append(change("z", layer, z).contiguous())
                return found.z[-1]

            found.streams.append(stream)
            stream = stream + self.run.attention(layer, stream, act)
            found.middles.append(stream)
            write = stream if given else self.run.mlp(layer, stream)
            write = outside(self._mlps[layer], self.means.mlp[layer], write)
            found.mlp.append(change("mlp", layer, write))
            stream = stream + found.mlp[-1]
        found.streams.append(stream)
        return found

    def _sent(self, sender: Component, reads: str) -> _Pass:
        """The run in which a sender's write is changed, for receivers of a kind."""
        clean, new, (layer, head) = self.clean, self.new, sender
        tried = {c.layer for c in self.nodes if c.head is None and c.layer <= layer}
        if head is not None:
            frozen = {"z"} if ANEW in self.pieces else {"z", "mlp"}
        else:
            frozen = set() if UNFROZEN in self.pieces else {"z", "mlp"}
        faulty = head is None and (
            (reads == "head" and B12 in self.pieces) or (reads == "logits" and B13 in self.pieces)
        )

        def change(kind: str, at: int, own: torch.Tensor) -> torch.Tensor:
            to = getattr(new, kind)[at].expand_as(own)
            if faulty:
                if reads == "head":
                    return to if (kind, at) == ("z", layer) else own
                return to if at in tried else own
            value = getattr(clean, kind)[at] if kind in frozen else own
            if at != layer or (kind == "z") == (head is None):
                return value
            if kind == "mlp":
                return to
            value = value.clone()
            value[:, :, head] = to[:, :, head]
            return value

        given = "mlp" in frozen and not faulty
        return self._walk(clean.streams[0], change, given=given)

    def _received(self, sent: _Pass, edges: Sequence[Edge]) -> dict[Edge, torch.Tensor]:
        """What receivers make of a sender's pass: z of a head, an MLP's write, the last stream."""
        found, read = {}, {}
        for edge in edges:
            if edge.receiver is None:
                found[edge] = sent.streams[-1]
                continue
            layer, head = edge.receiver
            key = layer, edge.source
            if key not in read:
                if head is None:
                    read[key] = self.run.mlp(layer, sent.middles[layer])
                else:
                    read[key] = self._z(layer, edge.source, sent.streams[layer])
            found[edge] = read[key] if head is None else read[key][:, :, head]
        return found

    def _z(self, layer: int, source: str, stream: torch.Tensor) -> torch.Tensor:
        """What heads hold when their q, k or v reads another stream than their other two."""
        block, seen = self.run.model.bridge.blocks[layer], []
        module = getattr(block.attn, source)
        other = module(before(block, "ln1", stream))

        def note(z: torch.Tensor) -> torch.Tensor:
            seen.append(z)
            return z

        handle = module.register_forward_hook(lambda module, inputs, out: other)
        try:
            self.run.attention(layer, self.clean.streams[layer], note)
        finally:
            handle.remove()
        return seen[0]

    def _patched(self, layer: int, items: Sequence[tuple[Edge, torch.Tensor]]) -> list[float]:
        """Mean logit differences of runs with one receiver each, all in one layer, given."""
        start, n = self.clean.streams[layer], self.run.residual.shape[1]

        def change(kind: str, at: int, own: torch.Tensor) -> torch.Tensor:
            if at != layer:
                return own
            own = own.unflatten(0, (-1, n)).clone()  # [candidate, n, pos, …]
            for i, (edge, value) in enumerate(items):
                assert edge.receiver is not None
                head = edge.receiver.head
                if kind == "z" and head is not None:
                    own[i, :, :, head] = value
                elif kind == "mlp" and head is None:
                    own[i] = value
            return own.flatten(0, 1)

        with torch.no_grad():
            final = self._walk(start.repeat(len(items), 1, 1), change, layer).streams[-1]
            return self.evaluator.difference(final.unflatten(0, (-1, n))).mean(1).tolist()

    def _slopes(self) -> dict[tuple[str, int], torch.Tensor]:
        """The gradient of the mean logit difference at what each component holds or writes."""
        probes: dict[tuple[str, int], torch.Tensor] = {}

        def probe(kind: str, layer: int, own: torch.Tensor) -> torch.Tensor:
            probes[kind, layer] = torch.zeros_like(own, requires_grad=True)
            return own + probes[kind, layer]

        with torch.enable_grad():
            final = self._walk(self.run.residual[0], probe).streams[-1]
            total = self.evaluator.difference(final[None]).mean()
            slopes = torch.autograd.grad(total, list(probes.values()))
        return dict(zip(probes, slopes, strict=True))


def _by_pass(edges: Iterable[Edge]) -> dict[tuple[Component, str], list[Edge]]:
    """Edges by sender and kind of receiver: those that one pass of the sender serves."""
    found: dict[tuple[Component, str], list[Edge]] = {}
    for edge in edges:
        reads = "logits" if edge.receiver is None else "mlp" if not edge.source else "head"
        found.setdefault((edge.sender, reads), []).append(edge)
    return found
