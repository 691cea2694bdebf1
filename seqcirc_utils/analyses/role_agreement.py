"""Whether shared parts have the same role in each task."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from transformer_lens.utilities.statistics import derive_generator

from seqcirc_utils.components import Component, by_kind
from seqcirc_utils.errors import UserError
from seqcirc_utils.statistics import percentile_p


@dataclass(frozen=True)
class Agreement:
    """Do shared heads have one role in all tasks?

    Attributes:
        same: Head and pair of tasks with the same role (not ``none``) in both.
        pairs: Heads times pairs of tasks.
        expected: Mean of ``same`` when roles are dealt out anew among the shared heads, task by
            task.
        p: Probability of at least so many by chance.
    """

    same: int
    pairs: int
    expected: float
    p: float


def role_agreement(
    roles: Mapping[str, Mapping[Component, str]],
    heads: Iterable[Component],
    *,
    none: str = "none",
    draws: int = 9999,
    seed: int = 0,
) -> Agreement:
    """Test whether the same heads have the same roles, by permutation.

    The null keeps what roles the shared heads have in each task, and forgets which head has which.
    Where all have one role it can say nothing, and ``p`` is 1.

    Args:
        roles: Task to component to role.
        heads: The shared heads.
        none: The role that is no role: two heads without one do not agree.
        draws: Permutations.
        seed: Draws them.

    Raises:
        UserError: when a task has no role for a shared head.
    """
    heads, tasks = sorted(heads), list(roles)
    missing = sorted({str(h) for h in heads for t in tasks if h not in roles[t]})
    if missing:
        raise UserError(f"no role for {', '.join(missing)}: run the roles' stage for every task.")
    labels = sorted({none, *(roles[t][h] for t in tasks for h in heads)})
    codes = np.array([[labels.index(roles[t][h]) for h in heads] for t in tasks])
    codes = np.where(codes == labels.index(none), -1, codes).reshape(len(tasks), len(heads))

    def count(codes: np.ndarray) -> int:
        return sum(int(((a == b) & (a >= 0)).sum()) for a, b in combinations(codes, 2))

    null = []
    rng = derive_generator(seed, "role agreement")
    for _ in range(draws):
        dealt = [row[torch.randperm(len(heads), generator=rng).numpy()] for row in codes]
        null.append(count(np.stack(dealt)) if dealt else 0)
    pairs = len(heads) * len(tasks) * (len(tasks) - 1) // 2
    same = count(codes)
    return Agreement(same, pairs, float(np.mean(null)), percentile_p(same, null))


def role_holders(
    roles: Mapping[str, Mapping[Component, str]], circuits: Mapping[str, set[Component]]
) -> pd.DataFrame:
    """Who has each role: shared heads, and each task's heads that are not in every circuit.

    Returns:
        Columns ``role``, ``shared`` (shared heads with this role in every task), ``changing``
        (shared heads with it in some tasks only), and one per task: its other heads. Names are
        joined by commas; roles that nobody has are left out.
    """
    heads = {task: by_kind(set(c))["heads"] for task, c in circuits.items()}
    core = set.intersection(*heads.values()) if heads else set()
    rows = []
    for role in sorted({roles[t][h] for t in heads for h in heads[t] if h in roles[t]}):
        holders = {t: {h for h in heads[t] if roles[t].get(h) == role} for t in heads}
        always = set.intersection(*(h & core for h in holders.values()))
        ever = set.union(*(h & core for h in holders.values()))
        groups = {"shared": always, "changing": ever - always}
        groups |= {t: h - core for t, h in holders.items()}
        rows.append({"role": role} | {k: ", ".join(map(str, sorted(g))) for k, g in groups.items()})
    return pd.DataFrame(rows, columns=["role", "shared", "changing", *heads])
