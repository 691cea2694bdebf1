"""What measurements that were made say of a choice that was not made.

Nothing is run: another threshold, size or cut-off is put to what a chapter has kept. Where a real
run would do more than that, each function says so.
"""

import itertools
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from seqcirc_utils.analyses import attention, roles
from seqcirc_utils.components import Component


def on_path(steps: pd.DataFrame, everything: Iterable[str], threshold: float) -> list[str]:
    """The smallest circuit on the way of a search that keeps a threshold, or the whole model.

    It shows that so few suffice. A search with that threshold from the start goes another way from
    the first removal on that it refuses.

    Args:
        steps: One search's trials in order: ``component`` (names with spaces between), ``score``
            without them and all that was removed before, ``removed``.
        everything: All components of the model, by name.
        threshold: The score to keep.
    """
    taken = steps[steps["removed"]].reset_index(drop=True)
    enough = np.flatnonzero(taken["score"] >= threshold)
    last = enough[-1] + 1 if len(enough) else 0
    gone = {name for names in taken["component"][:last] for name in names.split()}
    return [name for name in everything if name not in gone]


def spendings(costs: Mapping[str, float], room: float) -> list[frozenset[str]]:
    """Sets whose costs add up to no more than the room, and to which nothing can be added.

    Where components only write (and no other reads what they write), what is lost without several
    is the sum of what is lost without each. A search that removes one after another ends in one of
    these sets, whichever order it takes.

    Args:
        costs: Component to what is lost without it (few: every subset is looked at).
        room: How much may be lost.
    """
    slack = 1e-6  # a sum that meets the room is within it
    names = list(costs)
    subsets = (set(c) for n in range(len(names) + 1) for c in itertools.combinations(names, n))
    fits = [s for s in subsets if sum(costs[n] for n in s) <= room + slack]
    return [frozenset(s) for s in fits if not any(s < other for other in fits)]


def roles_at(
    components: pd.DataFrame, spread: Mapping[str, float], least_attention: float
) -> pd.Series:
    """Roles by the rules, with another least attention, from the evidence that a chapter kept.

    Args:
        components: A row per component: the evidence that decides, and its p-values.
        spread: What evenly spread attention would give in each attention column.
        least_attention: In place of :data:`roles.ATTENTION`, and no less than it.

    Returns:
        The roles, with the table's index; empty where they cannot be told.

    Raises:
        ValueError: for less attention than the rules ask for.
    """
    if least_attention < roles.ATTENTION:
        raise ValueError(f"at least {roles.ATTENTION}, not {least_attention}")
    # The rules ask for ATTENTION and for LIFT times the spread: the second is raised to what is
    # asked for here, so that the rules themselves stay as they are.
    floor = {name: max(value, least_attention / roles.LIFT) for name, value in spread.items()}
    sizes = [f"{name}_size" for name in attention.SIZE_EVIDENCE]
    means = {
        name: components[name].to_numpy(float)
        for name in (*roles.DECIDING, *sizes, "p_next", "p_copy")
    }
    found = np.where(roles.told(means), roles.assign(means, floor), "")
    return pd.Series(found, index=components.index)


def leading(effects: pd.Series, circuit: Iterable[str], share: float) -> set[str]:
    """The part of a circuit whose loss costs most: so large a share of it, one at the least.

    Args:
        effects: Component to the change that its ablation makes (negative: it costs).
        circuit: Names of components.
        share: From 0 to 1.
    """
    inside = effects[effects.index.isin(list(circuit))]
    n = max(1, round(share * len(inside)))
    return set(inside.nsmallest(n).index)


def same_set(values: np.ndarray, n: int) -> np.ndarray:
    """For each row among the ``n`` largest of the means: in how many columns it is among them.

    Args:
        values: ``[row, column]``.
        n: How many count as the largest, by size without sign.

    Returns:
        Rows and counts ``[n, 2]``, the largest mean first.
    """
    size = np.abs(values)
    top = np.argsort(-np.abs(values.mean(1)), kind="stable")[:n]
    ranked = np.argsort(-size, axis=0, kind="stable")[:n]  # [n, column]
    return np.array([[row, (ranked == row).sum()] for row in top])


def heads_of(names: Iterable[str]) -> list[str]:
    """Those that are heads, in the model's order."""
    return sorted((n for n in names if not n.startswith("mlp")), key=Component.parse)
