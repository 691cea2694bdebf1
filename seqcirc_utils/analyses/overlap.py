"""How much the tasks' circuits share, against chance."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
from scipy.stats import hypergeom, spearmanr

from seqcirc_utils import store
from seqcirc_utils.components import Component, Edge, by_kind, edges_of
from seqcirc_utils.errors import UserError


@dataclass(frozen=True)
class Overlap:
    """Components of one kind (heads or MLPs) that several circuits share.

    Attributes:
        shared: Those in all circuits.
        expected: Expected number for independent random sets of these sizes.
        p: Probability of at least so many by chance.
        total: How many there are in the model.
        range: The smallest and the largest number in the middle 95% of what chance gives.
    """

    shared: list[Component]
    expected: float
    p: float
    total: int
    range: list[int] = field(default_factory=lambda: [0, 0])


def _law(sizes: Sequence[int], total: int) -> np.ndarray:
    """Probabilities of ``0 … total`` common members of independent random sets."""
    counts = np.zeros(total + 1)
    counts[sizes[0]] = 1.0
    support = np.arange(total + 1)
    for size in sizes[1:] if total else ():  # of nothing, scipy's law is NaN
        counts = sum(
            (counts[k] * hypergeom.pmf(support, total, k, size) for k in np.flatnonzero(counts)),
            np.zeros(total + 1),
        )
    return counts


def _against(law: np.ndarray, shared: int) -> tuple[float, float]:
    """What a law expects, and its probability of at least so many."""
    return float(law @ np.arange(len(law))), float(min(1.0, law[shared:].sum()))


def _overlap(sets: Sequence[set[Component]], law: np.ndarray, total: int) -> Overlap:
    """The sets' intersection against the law of its size."""
    shared = set.intersection(*sets)
    low, high = np.searchsorted(law.cumsum(), (0.025, 0.975))
    return Overlap(sorted(shared), *_against(law, len(shared)), total, [int(low), int(high)])


def overlap(sets: Sequence[set[Component]], total: int) -> Overlap:
    """Compare the size of the intersection with independent random sets of the same sizes.

    Two sets give the hypergeometric distribution; each further one is intersected in turn (exact).

    Args:
        sets: Sets of components of one kind (heads or MLPs).
        total: How many components of that kind there are.
    """
    return _overlap(sets, _law(list(map(len, sets)), total), total)


def layer_overlap(sets: Sequence[set[Component]], n_layers: int, n_heads: int) -> Overlap:
    """Compare shared heads with random sets of as many heads in each layer (exact).

    Circuits that merely prefer the same layers share more heads than :func:`overlap` expects;
    this null has that preference too. For MLPs, one to a layer, it would be the circuits again:
    where sets hold MLPs, as many of all layers are drawn, and heads and MLPs add up.
    """
    mlps = [sum(c.head is None for c in s) for s in sets]
    law = _law(mlps, n_layers) if any(mlps) else np.ones(1)
    for layer in range(n_layers):
        sizes = [sum(c.layer == layer and c.head is not None for c in s) for s in sets]
        law = np.convolve(law, _law(sizes, n_heads))
    return _overlap(sets, law, n_layers * (n_heads + any(mlps)))


@dataclass(frozen=True)
class EdgeOverlap:
    """Edges that every circuit has; all ``None`` and empty where they are not compared.

    Attributes:
        shared: Their names, sorted.
        possible: How many edges could join nodes of every circuit.
        expected: How many chance gives.
        p: Probability of at least so many by chance.
    """

    shared: list[str] = field(default_factory=list)
    possible: int | None = None
    expected: float | None = None
    p: float | None = None

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        store.write_json(path, vars(self))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it."""
        return cls(**store.read_json(path))


def edge_overlap(edges: Mapping[str, Iterable[str]]) -> EdgeOverlap:
    """Edges in every circuit, against chance among the edges that the shared nodes allow.

    Circuits that share nodes share edges by necessity. So chance draws, for each circuit, as many
    edges as it has between nodes of every circuit, from all edges that could join such nodes.

    Args:
        edges: Task to its circuit's edges, written ``4.10->9.1.q``.

    Raises:
        UserError: when a circuit has no edges.
    """
    sets = {task: set(map(Edge.parse, found)) for task, found in edges.items()}
    empty = [task for task, found in sets.items() if not found]
    if empty or not sets:
        raise UserError(f"no edges in the circuit of {', '.join(empty) or 'any task'}.")
    nodes = [{node for e in s for node in (e.sender, e.receiver) if node} for s in sets.values()]
    possible = set(edges_of(set.intersection(*nodes)))
    law = _law([len(s & possible) for s in sets.values()], len(possible))
    shared = set.intersection(*sets.values())
    return EdgeOverlap(sorted(map(str, shared)), len(possible), *_against(law, len(shared)))


OVERLAP_COLUMNS = ["sizes", "shared", "expected", "p", "layer_expected", "layer_p", "jaccard"]
"""What is told of circuits that are laid over each other."""


def overlap_table(
    circuits: Mapping[str, set[Component]], totals: Mapping[str, int]
) -> pd.DataFrame:
    """Overlap of each pair of circuits and of all of them, heads and MLPs apart.

    Columns: ``kind``, ``tasks``, ``sizes``, ``shared``, ``expected`` and ``p`` (see
    :func:`overlap`), ``layer_expected`` and ``layer_p`` (see :func:`layer_overlap`; NaN for MLPs),
    ``jaccard``.

    Args:
        circuits: Task to circuit.
        totals: How many ``heads`` and ``MLPs`` (one to a layer) the model has.
    """
    n_layers = totals["MLPs"]
    names = list(circuits)
    groups = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    groups += [tuple(names)] if len(names) > 2 else []
    rows = []
    for kind in ("heads", "MLPs"):
        for group in groups:
            sets = [by_kind(circuits[name])[kind] for name in group]
            found = overlap(sets, totals[kind])
            layered = [float("nan")] * 2
            if kind == "heads":
                null = layer_overlap(sets, n_layers, totals["heads"] // n_layers)
                layered = [null.expected, null.p]
            union = set.union(*sets)
            rows.append(
                {
                    "kind": kind,
                    "tasks": " & ".join(group),
                    "sizes": ", ".join(str(len(s)) for s in sets),
                    "shared": len(found.shared),
                    "expected": found.expected,
                    "p": found.p,
                    "layer_expected": layered[0],
                    "layer_p": layered[1],
                    "jaccard": len(found.shared) / len(union) if union else float("nan"),
                }
            )
    return pd.DataFrame(rows, columns=["kind", "tasks", *OVERLAP_COLUMNS])


def overlap_by_search(
    circuits: Mapping[str, Mapping[str, set[Component]]], totals: Mapping[str, int]
) -> pd.DataFrame:
    """Heads that all tasks' circuits share, by the search that found the circuits.

    Args:
        circuits: Task to search to circuit; a task may lack a search.
        totals: See :func:`overlap_table`.

    Returns:
        A row per search of two tasks or more: ``search`` and the columns of :func:`overlap_table`,
        but for ``kind``.
    """
    rows = []
    for search in dict.fromkeys(search for of_task in circuits.values() for search in of_task):
        of_search = {task: found[search] for task, found in circuits.items() if search in found}
        table = overlap_table(of_search, totals)
        heads = table[table["kind"] == "heads"].drop(columns="kind")
        rows.append(heads.tail(1).assign(search=search))  # the last: all tasks together
    columns = ["search", "tasks", *OVERLAP_COLUMNS]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def importance_correlation(effects: pd.DataFrame) -> pd.DataFrame:
    """Spearman correlation of component importance between tasks ``[task, task]``.

    Args:
        effects: One column per task, one row per component.
    """
    names = list(effects.columns)
    values = [[spearmanr(effects[a], effects[b]).statistic for b in names] for a in names]
    return pd.DataFrame(values, index=names, columns=names)


def shared_and_rest(circuits: Mapping[str, set[Component]]) -> dict[str, set[Component]]:
    """The shared core (``core``), and what each circuit has beyond it (``<task> rest``)."""
    core = set.intersection(*map(set, circuits.values())) if circuits else set()
    return {"core": core} | {f"{task} rest": set(c) - core for task, c in circuits.items()}
