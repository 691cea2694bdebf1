"""Edges: which component's write each part of a circuit needs to read, exactly and fast.

Inside a node circuit, every reader (the q, k or v of a head, an MLP, the logits) reads the residual
stream as a sum: embedding, and for each component below it either what that component writes now
(the edge is kept) or its replacement (the edge is cut, or the component is not in the circuit).

    input = embedding + all replacements + sum over kept edges of (write - replacement)

Why it is fast, and still exact:

- only components from which kept edges lead to the logits are computed;
- a component that no key or value depends on is computed at the final position alone;
- a candidate recomputes only what lies downstream of a reader whose edges changed.

``tests/ablation/test_edges.py`` holds the results to plain passes and to TransformerLens.
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.components import SOURCES, Component, Edge, _order, _sources, edges_of
from seqcirc_utils.errors import UserError
from seqcirc_utils.models.capabilities import added, before, first, require

_SO = (
    "a single component's write cannot be kept or cut along one edge: edge circuits do not apply. "
    "Node circuits do."
)


@dataclass(frozen=True)
class _State:
    """An edge circuit that has been run.

    Attributes:
        keep: Which edges are kept ``[reader, sender]``.
        changes: Write minus replacement of the senders that were computed ``[1, n, p, d_model]``.
        score: Logit differences ``[n]``.
    """

    keep: torch.Tensor
    changes: dict[int, torch.Tensor]
    score: torch.Tensor


class EdgeEvaluator:
    """Scores any set of kept edges of a node circuit.

    Args:
        evaluator: Prompts, and what cut edges and components outside the circuit carry.
        nodes: The node circuit.

    Attributes:
        nodes: The circuit's components, in the order of computation.
        edges: All its edges.
        score: Logit differences ``[n]`` with every edge kept.

    Raises:
        UserError: for unknown components, and for a model whose components do not write into, and
            read from, one sum.
    """

    def __init__(self, evaluator: Evaluator, nodes: Iterable[Component]) -> None:
        self.evaluator = evaluator
        self.nodes = sorted(set(nodes), key=_order)
        evaluator.masks(self.nodes)  # refuses unknown components
        found = require(evaluator.model, "heads in_turn", _SO)
        if not evaluator._by_parts:
            self._refuse(
                "does not run attention and then the MLP, each by itself, on these prompts"
            )
        self._factors = found.attention
        self.edges = edges_of(self.nodes)
        readers = [(node, source) for node in self.nodes for source in _sources(node)]
        self._readers: list[tuple[Component | None, str]] = [*readers, (None, "")]
        number = {node: i for i, node in enumerate(self.nodes)}
        self._place = {
            edge: (self._readers.index(edge[1:]), number[edge.sender]) for edge in self.edges
        }
        # The readers of each component, and of the logits.
        self._reads = {node: [] for node in [*self.nodes, None]}
        for r, (node, _) in enumerate(self._readers):
            self._reads[node].append(r)
        self._constants = self._replacements_so_far()
        self._whole = self._run(self._matrix(self.edges), None)
        expected = evaluator.kept([self.nodes]).logit_diff[0]
        close = torch.finfo(evaluator.replacement.mlp.dtype).eps ** 0.5
        if not torch.allclose(self._whole.score, expected, close, close):
            self._refuse("does not add up what its components write")
        self.score = self._whole.score

    def differences(
        self, sets: Sequence[Iterable[Edge]], *, progress: str | None = None
    ) -> torch.Tensor:
        """Logit differences ``[set, n]`` with each set of edges kept and all others cut."""
        keeps = [self._matrix(edges) for edges in sets]
        changed = [(keep != self._whole.keep).any(1).nonzero().flatten().tolist() for keep in keeps]
        first = [self._readers[min(c, default=-1)][0] for c in changed]
        step = max(1, self.evaluator.max_rows // len(self.evaluator.prompts))
        found = torch.zeros(len(keeps), len(self.evaluator.prompts))
        bar = tqdm(total=len(keeps), desc=progress, unit="set", disable=progress is None)
        with bar, torch.no_grad():
            for node in dict.fromkeys(first):
                # Candidates that differ from the whole at the same component share a batch.
                for rows in torch.tensor([i for i, f in enumerate(first) if f == node]).split(step):
                    final, _ = self._pass(torch.stack([keeps[i] for i in rows]), self._whole)
                    found[rows] = self._score(final)
                    bar.update(len(rows))
        return found

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
        keep = self._whole.keep if kept is None else self._matrix(kept)
        part = self._first(rows) if rows else self
        inputs: dict[int, torch.Tensor] = {}
        with torch.enable_grad():
            final, changes = part._pass(keep[None], None, inputs)
            total = part.evaluator.difference(final).mean()
            found = torch.autograd.grad(total, list(inputs.values()), allow_unused=True)
        slopes = dict(zip(inputs, found, strict=True))
        effects = {}
        for edge, (reader, sender) in self._place.items():
            if keep[reader, sender]:
                slope = slopes.get(reader)
                effects[edge] = 0.0
                if slope is not None:
                    change = changes[sender].detach()[:, :, -slope.shape[2] :]
                    effects[edge] = -float((change * slope).sum())
        return effects

    def _refuse(self, why: str) -> None:
        raise UserError(f"{self.evaluator.model.facts.title} {why}, so {_SO}")

    def _matrix(self, edges: Iterable[Edge]) -> torch.Tensor:
        """A set of edges as ``[reader, sender]``."""
        keep = torch.zeros(len(self._readers), len(self.nodes), dtype=torch.bool)
        for edge in edges:
            if edge not in self._place:
                raise UserError(
                    f"unknown edge '{edge}': it is none of the {len(self.edges)} edges of this "
                    "node circuit (see its attribute edges)."
                )
            keep[self._place[edge]] = True
        return keep

    @torch.no_grad()
    def _replacements_so_far(self) -> dict[Component | None, torch.Tensor]:
        """The sum of all replacements below each component ``[1 or n, pos, d_model]``."""
        new, found = self.evaluator.replacement, {}
        total = torch.zeros_like(new.mlp[0])
        for layer, block in enumerate(self.evaluator.model.bridge.blocks):
            out = block.attn.o(new.z[layer].flatten(-2))
            middle = total + added(block, "ln1_post", self._factors[layer], out)
            for node in self.nodes:
                if node.layer == layer:
                    found[node] = middle if node.head is None else total
            total = middle + new.mlp[layer]
        return found | {None: total}

    def _first(self, rows: int) -> "EdgeEvaluator":
        """This evaluator on its first prompts, without running anything again."""
        part = object.__new__(EdgeEvaluator)
        constants = {node: value[:rows] for node, value in self._constants.items()}
        few = self.evaluator._first(min(rows, len(self.evaluator.prompts)))
        part.__dict__.update(vars(self), evaluator=few, _constants=constants)
        return part

    @torch.no_grad()
    def _run(self, keep: torch.Tensor, start: _State | None) -> _State:
        final, changes = self._pass(keep[None], start)
        return _State(keep, changes, self._score(final)[0])

    def _score(self, final: torch.Tensor) -> torch.Tensor:
        score = self.evaluator.difference(final).cpu()
        if not torch.isfinite(score).all():
            raise UserError("the model's logits hold NaN or infinity: try dtype float32.")
        return score

    def _needs(self, senders: list[set[int]]) -> tuple[list[bool], list[bool]]:
        """Which components lead to the logits, and which are read at every position."""
        live, full = [False] * len(self.nodes), [False] * len(self.nodes)
        for i in reversed(range(len(self.nodes) + 1)):
            node = self.nodes[i] if i < len(self.nodes) else None
            if node is None or live[i]:
                for r in self._reads[node]:
                    everywhere = node is not None and self._everywhere(r, full[i])
                    for sender in senders[r]:
                        live[sender] = True
                        full[sender] |= everywhere
        return live, full

    def _everywhere(self, reader: int, full: bool) -> bool:
        """Whether a reader reads all positions: keys and values do, others if their node must."""
        return full or self._readers[reader][1] in ("k", "v")

    def _pass(
        self,
        keep: torch.Tensor,
        start: _State | None,
        inputs: dict[int, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Run edge circuits.

        Args:
            keep: Kept edges ``[candidate, reader, sender]``.
            start: A circuit whose results are reused where nothing changed.
            inputs: Filled with what each reader reads, to take gradients at.

        Returns:
            The final residual ``[candidate, n, 1, d_model]``, and each computed component's write
            minus its replacement ``[candidate or 1, n, p, d_model]``.
        """
        senders = [set(row.nonzero().flatten().tolist()) for row in keep.any(0)]
        live, full = self._needs(senders)
        pos = self.evaluator.prompts.tokens.shape[1]
        known = start.changes if start else {}
        changed = (keep != start.keep).any(2).any(0).tolist() if start else [True] * len(senders)
        stream = _Stream(self, keep, inputs)
        fresh: set[int] = set()  # computed here, not taken from ``start``
        for group in self._groups():
            old, new = {}, []
            for i in group:
                reads = self._reads[self.nodes[i]]
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
                compute = self._mlp if self.nodes[new[0]].head is None else self._heads
                old |= zip(new, compute(new, full, stream), strict=True)
                fresh.update(new)
            stream.add(old, full)
        final = stream.read(len(self._readers) - 1, False)
        return final.expand(len(keep), *final.shape[1:]), stream.changes

    def _groups(self) -> list[list[int]]:
        """Components that cannot feed each other: the heads of a layer, or an MLP."""
        groups: dict[tuple[int, bool], list[int]] = {}
        for i, node in enumerate(self.nodes):
            groups.setdefault((node.layer, node.head is None), []).append(i)
        return list(groups.values())

    def _mlp(self, group: list[int], full: list[bool], stream: "_Stream") -> list[torch.Tensor]:
        (i,) = group
        layer = self.nodes[i].layer
        block = self.evaluator.model.bridge.blocks[layer]
        read = stream.read(self._reads[self.nodes[i]][0], full[i])
        out = first(block.mlp(before(block, "ln2", read.flatten(0, 1))))
        write = added(block, "ln2_post", self.evaluator.wiring.mlp[layer], out).reshape(read.shape)
        return [write - self.evaluator.replacement.mlp[layer][:, -read.shape[2] :]]

    def _heads(self, group: list[int], full: list[bool], stream: "_Stream") -> list[torch.Tensor]:
        layer = self.nodes[group[0]].layer
        block = self.evaluator.model.bridge.blocks[layer]
        reads = [
            stream.read(r, self._everywhere(r, full[i]))
            for i in group
            for r in self._reads[self.nodes[i]]
        ]
        distinct = {id(read): read for read in reads}
        normed = {key: before(block, "ln1", read.flatten(0, 1)) for key, read in distinct.items()}
        count = max(read.shape[0] for read in reads)
        n, pos = self.evaluator.prompts.tokens.shape
        shared = block.attn.W_Q.shape[0] // block.attn.W_K.shape[0]
        # Heads that share keys and values get a run of the attention each: theirs may differ here.
        runs: list[int] = []
        for i in group:
            others = [self.nodes[j].head // shared for j in group[: len(runs)]]
            runs.append(others.count(self.nodes[i].head // shared))
        projected = {}
        for source in SOURCES:
            weight, bias = (getattr(block.attn, f"{kind}_{source.upper()}") for kind in "Wb")
            whole = stream.embed.new_zeros(
                count, n, max(runs) + 1, pos, weight.shape[0], weight.shape[2]
            )
            for at, i in enumerate(group):
                read = reads[3 * at + SOURCES.index(source)]
                head = self.nodes[i].head if source == "q" else self.nodes[i].head // shared
                one = normed[id(read)] @ weight[head]
                one = one if bias is None else one + bias[head]
                one = one.reshape(*read.shape[:3], -1)
                whole[:, :, runs[at], -one.shape[2] :, head] = one
            projected[source] = whole
        z = self._attend(layer, {s: value.flatten(0, 2) for s, value in projected.items()})
        z = z.reshape(count, n, max(runs) + 1, pos, *z.shape[-2:])
        new = self.evaluator.replacement.z[layer]
        changes = []
        for at, i in enumerate(group):
            head, last = self.nodes[i].head, pos if full[i] else 1
            change = z[:, :, runs[at], -last:, head] - new[:, -last:, head]
            changes.append(change @ (block.attn.W_O[head] * self._factors[layer]))
        return changes

    def _attend(self, layer: int, projected: dict[str, torch.Tensor]) -> torch.Tensor:
        """The block's own attention on given queries, keys and values ``[rows, pos, head, d]``.

        Its projections run on one token only: their results are not used.
        """
        attention = self.evaluator.model.bridge.blocks[layer].attn
        seen: list[torch.Tensor] = []

        def little(module: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            return (inputs[0][:1, :1],)

        def note(module: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            seen.append(inputs[0])
            return little(module, inputs)

        rows, pos = projected["q"].shape[:2]
        nothing = projected["q"].new_zeros(()).expand(rows, pos, self.evaluator.model.facts.d_model)
        # Torch's own hooks: TransformerLens' context manager takes longer than this attention.
        with contextlib.ExitStack() as stack:
            for source, value in projected.items():
                module, flat = getattr(attention, source), value.flatten(-2)
                stack.enter_context(module.register_forward_pre_hook(little))
                stack.enter_context(
                    module.register_forward_hook(lambda module, inputs, out, flat=flat: flat)
                )
            stack.enter_context(attention.o.register_forward_pre_hook(note))
            run = self.evaluator.run
            attention(hidden_states=nothing, **run.for_rows(run.attention_arguments[layer], rows))
        return seen[0].reshape(projected["q"].shape)


class _Stream:
    """What the circuit has written so far, and what each reader reads of it."""

    def __init__(
        self, owner: EdgeEvaluator, keep: torch.Tensor, inputs: dict[int, torch.Tensor] | None
    ) -> None:
        self.owner, self.keep, self.inputs = owner, keep, inputs
        self.embed = owner.evaluator.run.residual[0][None]
        self.changes: dict[int, torch.Tensor] = {}
        self.full: set[int] = set()
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
        constant = self.owner._constants[self.owner._readers[reader][0]]
        chosen = self.keep[:, reader]
        key = everywhere, chosen.numpy().tobytes()
        if key in self._made and self.inputs is None:
            return self._made[key]
        last = self.embed.shape[2] if everywhere else 1
        value = self.embed[:, :, -last:] + constant[:, -last:]
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


class EdgePruning:
    """An edge circuit that loses edges one after another; each trial computes what it changes.

    Args:
        circuit: The evaluator of edge circuits.
        removed: Edges that are cut from the beginning.
    """

    def __init__(self, circuit: EdgeEvaluator, removed: Iterable[Edge] = ()) -> None:
        self.circuit = circuit
        self.removed = set(removed)
        self._state = circuit._whole
        self._pending: tuple[frozenset[Edge], _State]
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
        keep = self.circuit._matrix(set(self.circuit.edges) - self.removed - gone)
        self._pending = gone, self.circuit._run(keep, self._state)
        return self._pending[1].score

    def accept(self) -> None:
        """Make the last trial the present state."""
        gone, self._state = self._pending
        self.removed |= gone
