"""How alike the tasks' circuits are: overlap against chance, shared importance, shared parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pandas as pd
from scipy.stats import hypergeom, spearmanr

from seqcirc_utils.ablation import Component


@dataclass(frozen=True)
class Overlap:
    """Components of one kind that several circuits share.

    Attributes:
        shared: The components in all circuits.
        expected: Expected number for independent random sets of these sizes.
        p: Probability of at least so many by chance.
        total: Components of the kind in the model.
    """

    shared: list[Component]
    expected: float
    p: float
    total: int


def overlap(sets: Sequence[set[Component]], total: int) -> Overlap:
    """Compare the size of the intersection with independent random sets of the same sizes.

    Two sets give the hypergeometric distribution; each further one is intersected in turn (exact).

    Args:
        sets: Two or more sets of components of one kind (heads, or MLPs).
        total: How many components of that kind the model has.
    """
    shared = reduce(set.intersection, sets)
    sizes = [len(s) for s in sets]
    counts = np.zeros(total + 1)
    counts[sizes[0]] = 1.0  # distribution of the intersection's size so far
    support = np.arange(total + 1)
    for size in sizes[1:]:
        counts = sum(
            (counts[k] * hypergeom.pmf(support, total, k, size) for k in np.flatnonzero(counts)),
            np.zeros(total + 1),
        )
    p = float(min(1.0, counts[len(shared) :].sum()))
    expected = float((counts * support).sum())
    return Overlap(sorted(shared, key=_order), expected, p, total)


def _order(component: Component) -> tuple[int, int]:
    return component.layer, 1 << 30 if component.head is None else component.head


def by_kind(circuit: set[Component]) -> dict[str, set[Component]]:
    """A circuit's heads and MLPs apart."""
    return {
        "heads": {c for c in circuit if c.head is not None},
        "MLPs": {c for c in circuit if c.head is None},
    }


def overlap_table(
    circuits: Mapping[str, set[Component]], totals: Mapping[str, int]
) -> pd.DataFrame:
    """Overlap of each pair of circuits and of all of them, heads and MLPs apart."""
    names = list(circuits)
    groups = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    groups += [tuple(names)] if len(names) > 2 else []
    rows = []
    for kind in ("heads", "MLPs"):
        for group in groups:
            sets = [by_kind(circuits[name])[kind] for name in group]
            found = overlap(sets, totals[kind])
            union = set.union(*sets)
            rows.append(
                {
                    "kind": kind,
                    "tasks": " & ".join(group),
                    "sizes": ", ".join(str(len(s)) for s in sets),
                    "shared": len(found.shared),
                    "expected": found.expected,
                    "p": found.p,
                    "jaccard": len(found.shared) / len(union) if union else float("nan"),
                }
            )
    return pd.DataFrame(rows)


def importance_correlation(effects: pd.DataFrame) -> pd.DataFrame:
    """Spearman correlation of component importance between tasks ``[task, task]``.

    Args:
        effects: One column per task, one row per component.
    """
    names = list(effects.columns)
    values = [[spearmanr(effects[a], effects[b]).statistic for b in names] for a in names]
    return pd.DataFrame(values, index=names, columns=names)
