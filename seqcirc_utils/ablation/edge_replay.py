"""Running the edge circuits of a node circuit: every reader on an input of its own.

    input = embedding + all replacements + sum over kept edges of (write - replacement)

Why it is fast, and still exact:

- only components from which kept edges lead to the logits are computed;
- a component that no key or value depends on is computed at the final position alone;
- a candidate recomputes only what lies downstream of a reader whose edges changed.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import Run
from seqcirc_utils.components import SOURCES, Component, Edge, edges_of, sources
from seqcirc_utils.errors import UserError
from seqcirc_utils.models.capabilities import before, wiring


class Graph:
    """The edges of a node circuit, numbered.

    Attributes:
        nodes: The components, in the order of computation; they are the senders.
        edges: All edges.
        readers: The inputs that read the stream: component (``None``: the logits) and source.
        reads: The readers of each component, and of the logits.
        place: Reader and sender of each edge.
    """

    def __init__(self, nodes: Iterable[Component]) -> None:
        self.nodes = sorted(set(nodes))
        self.edges = edges_of(self.nodes)
        inner = [(node, source) for node in self.nodes for source in sources(node)]
        self.readers: list[tuple[Component | None, str]] = [*inner, (None, "")]
        self.reads: dict[Component | None, list[int]] = {n: [] for n in (*self.nodes, None)}
        for r, (node, _) in enumerate(self.readers):
            self.reads[node].append(r)
        reader = {name: r for r, name in enumerate(self.readers)}
        sender = {node: s for s, node in enumerate(self.nodes)}
        self.place = {edge: (reader[edge[1:]], sender[edge.sender]) for edge in self.edges}

    def matrix(self, edges: Iterable[Edge]) -> torch.Tensor:
        """A set of edges as ``[reader, sender]``.

        Raises:
            UserError: for an edge that is none of this circuit.
        """
        keep = torch.zeros(len(self.readers), len(self.nodes), dtype=torch.bool)
        for edge in edges:
            if edge not in self.place:
                raise UserError(
                    f"unknown edge '{edge}': it is none of the {len(self.edges)} edges of this "
                    "node circuit (see its attribute edges)."
                )
            keep[self.place[edge]] = True
        return keep

    def groups(self) -> list[list[int]]:
        """Senders that cannot feed each other: the heads of a layer, or an MLP."""
        found: dict[tuple[int, bool], list[int]] = {}
        for i, node in enumerate(self.nodes):
            found.setdefault((node.layer, node.head is None), []).append(i)
        return list(found.values())

    def everywhere(self, reader: int, full: bool) -> bool:
        """Whether a reader reads all positions: keys and values do, others if their node must."""
        return full or self.readers[reader][1] in ("k", "v")

    def needs(self, senders: list[set[int]]) -> tuple[list[bool], list[bool]]:
        """Which senders lead to the logits, and which are read at every position.

        Args:
            senders: The senders that each reader keeps.
        """
        live, full = [False] * len(self.nodes), [False] * len(self.nodes)
        for r in self.reads[None]:
            for sender in senders[r]:
                live[sender] = True
        for i in reversed(range(len(self.nodes))):
            for r in self.reads[self.nodes[i]] if live[i] else ():
                for sender in senders[r]:
                    live[sender] = True
                    full[sender] |= self.everywhere(r, full[i])
        return live, full


@dataclass(frozen=True)
class State:
    """An edge circuit that has been run.

    Attributes:
        keep: Which edges are kept ``[reader, sender]``.
        changes: Write minus replacement of the senders that were computed ``[1, n, p, d_model]``.
        score: Logit differences ``[n]``.
    """

    keep: torch.Tensor
    changes: dict[int, torch.Tensor]
    score: torch.Tensor


class EdgeReplay:
    """Runs edge circuits on the prompts of an evaluator.

    Args:
        evaluator: Prompts and replacement. Its model has ``heads`` and runs parts ``in_turn``.
        graph: The edges.
    """

    def __init__(self, evaluator: Evaluator, graph: Graph) -> None:
        self.evaluator, self.graph = evaluator, graph
        self.run, self.new = evaluator.run, evaluator.replacement
        self.constants = self._replacements_so_far()

    @torch.no_grad()
    def _replacements_so_far(self) -> dict[Component | None, torch.Tensor]:
        """The sum of all replacements below each component ``[1 or n, pos, d_model]``."""
        found: dict[Component | None, torch.Tensor] = {}
        total = torch.zeros_like(self.new.mlp[0])
        for layer in range(self.run.model.n_layers):
            middle = total + self.run.heads(layer, self.new.z[layer])
            for node in self.graph.nodes:
                if node.layer == layer:
                    found[node] = middle if node.head is None else total
            total = middle + self.new.mlp[layer]
        return found | {None: total}

    @torch.no_grad()
    def state(self, keep: torch.Tensor, start: State | None = None) -> State:
        """Run one edge circuit ``[reader, sender]``, reusing another's results."""
        final, changes = self.replay(keep[None], start)
        return State(keep, changes, self.evaluator.difference(final)[0].cpu())

    def replay(
        self,
        keep: torch.Tensor,
        start: State | None = None,
        inputs: dict[int, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Run edge circuits.

        Args:
            keep: Kept edges ``[candidate, reader, sender]``.
            start: A circuit whose results are reused where nothing changed.
            inputs: Filled with what each reader reads, to take gradients at.

        Returns:
            The final residual ``[candidate, n, 1, d_model]``, and each computed sender's write
            minus its replacement ``[candidate or 1, n, p, d_model]``.
        """
        graph, pos = self.graph, self.run.residual.shape[2]
        # The senders that any candidate keeps, by reader.
        senders = [set(row.nonzero().flatten().tolist()) for row in keep.any(0)]
        live, full = graph.needs(senders)
        known = start.changes if start else {}
        changed = (keep != start.keep).any(2).any(0).tolist() if start else [True] * len(senders)
        stream = _Stream(self, keep, inputs)
        fresh: set[int] = set()  # computed here, not taken from ``start``
        for group in graph.groups():
            old, new = {}, []
            for i in group:
                reads = graph.reads[graph.nodes[i]]
                if not live[i]:
                    continue
                if (
                    i not in known
                    or (full[i] and known[i].shape[2] < pos)
                    or any(changed[r] or senders[r] & fresh for r in reads)
                ):
                    new.append(i)
                else:
                    old[i] = known[i] if full[i] else known[i][:, :, -1:]
            if new:
                compute = self._mlp if graph.nodes[new[0]].head is None else self._heads
                old |= zip(new, compute(new, full, stream), strict=True)
                fresh.update(new)
            stream.add(old, full)
        final = stream.read(len(graph.readers) - 1, False)  # [candidate or 1, n, 1, d_model]
        return final.expand(len(keep), *final.shape[1:]), stream.changes

    def _mlp(self, group: list[int], full: list[bool], stream: "_Stream") -> list[torch.Tensor]:
        """What an MLP writes minus its replacement ``[candidate or 1, n, p, d_model]``."""
        (i,) = group
        node = self.graph.nodes[i]
        read = stream.read(self.graph.reads[node][0], full[i])
        write = self.run.mlp(node.layer, read.flatten(0, 1)).reshape(read.shape)
        return [write - self.new.mlp[node.layer][:, -read.shape[2] :]]

    def _heads(self, group: list[int], full: list[bool], stream: "_Stream") -> list[torch.Tensor]:
        """What heads of a layer write minus their replacements ``[candidate or 1, n, p, d_model]``.

        Keys and values are shared among heads, but the edges into them are each head's own: heads
        that share get one run of the attention each.
        """
        layer = self.graph.nodes[group[0]].layer
        attention = self.run.model.bridge.blocks[layer].attn
        n, pos = self.run.residual.shape[1:3]
        shared = attention.W_Q.shape[0] // attention.W_K.shape[0]  # heads that share a key
        heads = [self.graph.nodes[i].head for i in group]
        runs: list[int] = []  # which run of the attention a head gets
        for head in heads:
            runs.append([other // shared for other in heads[: len(runs)]].count(head // shared))
        parts = self._projected(layer, group, full, stream)
        count = max(part.shape[0] for values in parts.values() for part in values)
        projected = {}
        for source, values in parts.items():
            own = [head if source == "q" else head // shared for head in heads]
            places = (attention.W_Q if source == "q" else attention.W_K).shape[0]
            # [candidate or 1, n, run, pos, head or shared key, d_head]; what no one reads is 0.
            whole = values[0].new_zeros(count, n, max(runs) + 1, pos, places, values[0].shape[-1])
            for value, run, head in zip(values, runs, own, strict=True):
                whole[:, :, run, -value.shape[2] :, head] = value
            projected[source] = whole.flatten(0, 2)  # [candidate * n * run, pos, head, d_head]
        z = attend(self.run, layer, projected)  # [candidate * n * run, pos, head, d_head]
        z = z.reshape(count, n, max(runs) + 1, pos, *z.shape[-2:])
        factor, changes = wiring(self.run.model).attention[layer], []
        for i, head, run in zip(group, heads, runs, strict=True):
            p = pos if full[i] else 1
            # [candidate or 1, n, p, d_head] @ [d_head, d_model]
            change = z[:, :, run, -p:, head] - self.new.z[layer][:, -p:, head]
            changes.append(change @ (attention.W_O[head] * factor))
        return changes

    def _projected(
        self, layer: int, group: list[int], full: list[bool], stream: "_Stream"
    ) -> dict[str, list[torch.Tensor]]:
        """The q, k and v of each head ``[candidate or 1, n, p, d_head]``."""
        block, normed = self.run.model.bridge.blocks[layer], {}
        found: dict[str, list[torch.Tensor]] = {source: [] for source in SOURCES}
        for i in group:
            node = self.graph.nodes[i]
            for r, source in zip(self.graph.reads[node], SOURCES, strict=True):
                read = stream.read(r, self.graph.everywhere(r, full[i]))
                if id(read) not in normed:  # many readers read the same
                    # The second is kept so that its id stays its own: [candidate * n, p, d_model].
                    normed[id(read)] = before(block, "ln1", read.flatten(0, 1)), read
                weight, bias = (getattr(block.attn, f"{kind}_{source.upper()}") for kind in "Wb")
                head = node.head * weight.shape[0] // block.attn.W_Q.shape[0]
                one = normed[id(read)][0] @ weight[head]  # [candidate * n, p, d_head]
                one = one if bias is None else one + bias[head]
                found[source].append(one.reshape(*read.shape[:3], -1))
        return found


def attend(run: Run, layer: int, projected: dict[str, torch.Tensor]) -> torch.Tensor:
    """A block's own attention on given queries, keys and values ``[rows, pos, head, d_head]``.

    Its projections run on one token only: their results are not used.
    """
    attention = run.model.bridge.blocks[layer].attn
    seen: list[torch.Tensor] = []

    def little(module: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0][:1, :1],)

    def note(module: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        seen.append(inputs[0])
        return little(module, inputs)

    rows, pos = projected["q"].shape[:2]
    nothing = projected["q"].new_zeros(()).expand(rows, pos, run.residual.shape[-1])
    # Torch's own hooks: TransformerLens' context manager takes longer than this attention.
    with contextlib.ExitStack() as stack:
        for source, value in projected.items():
            module, flat = getattr(attention, source), value.flatten(-2)
            stack.enter_context(module.register_forward_pre_hook(little))
            stack.enter_context(
                module.register_forward_hook(lambda module, inputs, out, flat=flat: flat)
            )
        stack.enter_context(attention.o.register_forward_pre_hook(note))
        more = run.for_rows(run.attention_arguments[layer], rows)
        attention(hidden_states=nothing, **more)
    return seen[0].reshape(projected["q"].shape)


class _Stream:
    """What the circuit has written so far, and what each reader reads of it."""

    def __init__(
        self, owner: EdgeReplay, keep: torch.Tensor, inputs: dict[int, torch.Tensor] | None
    ) -> None:
        self.owner, self.keep, self.inputs = owner, keep, inputs
        self.embed = owner.run.residual[0][None]  # [1, n, pos, d_model]
        self.changes: dict[int, torch.Tensor] = {}
        self.full: set[int] = set()
        # Sums of all changes, at every position and at the last one.
        self._totals: dict[bool, Any] = {True: 0.0, False: 0.0}
        self._made: dict[tuple[Any, ...], torch.Tensor] = {}

    def add(self, changes: dict[int, torch.Tensor], full: list[bool]) -> None:
        """Add what some components changed; later readers read it."""
        self._made.clear()
        self.changes |= changes
        for sender, change in changes.items():
            self._totals[False] = self._totals[False] + change[:, :, -1:]
            if full[sender]:
                self.full.add(sender)
                self._totals[True] = self._totals[True] + change

    def read(self, reader: int, everywhere: bool) -> torch.Tensor:
        """What a reader reads ``[candidate or 1, n, p, d_model]``."""
        constant = self.owner.constants[self.owner.graph.readers[reader][0]]
        chosen = self.keep[:, reader]  # [candidate, sender]
        key = everywhere, chosen.numpy().tobytes()
        if key in self._made and self.inputs is None:
            return self._made[key]
        last = self.embed.shape[2] if everywhere else 1
        value = self.embed[:, :, -last:] + constant[:, -last:]  # [1, n, p, d_model]
        pool = [s for s in self.changes if s in self.full or not everywhere]
        some = [s for s in pool if chosen[:, s].any()]
        lost = [s for s in pool if not chosen[:, s].all()]
        # All but a few, or only a few: the shorter sum.
        if len(lost) < len(some):
            value, terms, sign = value + self._totals[everywhere], lost, -1
            chosen = ~chosen
        else:
            terms, sign = some, 1
        for sender in terms:
            change, which = self.changes[sender][:, :, -last:], chosen[:, sender]
            if not which.all():
                change = change * which.to(change)[:, None, None, None]
            value = torch.add(value, change, alpha=sign)
        if self.inputs is not None:
            # A tensor of its own for each reader: gradients must not mix.
            value = value.view_as(value) if value.requires_grad else value.requires_grad_()
            self.inputs[reader] = value
        self._made[key] = value
        return value
