"""How alike the tasks' circuits are: overlap against chance, transfer, shared parts, roles.

Claims C2, C7 to C9 and C20 of the paper, and its word "analogous": the same roles in each task.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import hypergeom, spearmanr
from transformer_lens.utilities.statistics import derive_generator

from seqcirc_utils.ablation import Component, Evaluator
from seqcirc_utils.circuits import percentile_p
from seqcirc_utils.edges import Edge, edges_of
from seqcirc_utils.errors import UserError, unknown
from seqcirc_utils.metrics import intervals, positive_baseline


@dataclass(frozen=True)
class Overlap:
    """Things of one kind (heads, MLPs, edges) that several circuits share.

    Attributes:
        shared: Those in all circuits.
        expected: Expected number for independent random sets of these sizes.
        p: Probability of at least so many by chance.
        total: How many there are in the model.
    """

    shared: list[Any]
    expected: float
    p: float
    total: int


def _law(sizes: Sequence[int], total: int) -> np.ndarray:
    """Probabilities of ``0 … total`` common members of independent random sets."""
    counts = np.zeros(total + 1)
    counts[sizes[0]] = 1.0
    support = np.arange(total + 1)
    for size in sizes[1:]:
        counts = sum(
            (counts[k] * hypergeom.pmf(support, total, k, size) for k in np.flatnonzero(counts)),
            np.zeros(total + 1),
        )
    return counts


def _against(law: np.ndarray, shared: set, total: int) -> Overlap:
    p = float(min(1.0, law[len(shared) :].sum()))
    return Overlap(sorted(shared, key=_order), float(law @ np.arange(len(law))), p, total)


def overlap(sets: Sequence[set], total: int) -> Overlap:
    """Compare the size of the intersection with independent random sets of the same sizes.

    Two sets give the hypergeometric distribution; each further one is intersected in turn (exact).

    Args:
        sets: Two or more sets of things of one kind (heads, MLPs, or edges).
        total: How many things of that kind there are.
    """
    return _against(_law([len(s) for s in sets], total), reduce(set.intersection, sets), total)


def layer_overlap(sets: Sequence[set[Component]], n_layers: int, n_heads: int) -> Overlap:
    """Compare shared heads with random sets of as many heads in each layer (exact).

    Circuits that merely prefer the same layers share more heads than :func:`overlap` expects;
    this null has that preference too. For MLPs, one to a layer, it would be the circuits again.
    """
    law = np.ones(1)
    for layer in range(n_layers):
        sizes = [sum(c.layer == layer for c in s) for s in sets]
        law = np.convolve(law, _law(sizes, n_heads))
    return _against(law, reduce(set.intersection, sets), n_layers * n_heads)


def edge_overlap(edges: Mapping[str, Iterable[str]]) -> tuple[list[Edge], Overlap]:
    """Edges in every circuit, against chance among the edges that the shared nodes allow.

    Circuits that share nodes share edges by necessity. So chance draws, for each circuit, as many
    edges as it has between nodes of every circuit, from all edges that could join such nodes.

    Args:
        edges: Task to its circuit's edges, written ``4.10->9.1.q``.

    Returns:
        All edges in every circuit, and the overlap among those that join nodes of every circuit.

    Raises:
        UserError: when a circuit has no edges.
    """
    sets = {task: set(map(Edge.parse, found)) for task, found in edges.items()}
    empty = [task for task, found in sets.items() if not found]
    if empty or not sets:
        raise UserError(f"no edges in the circuit of {', '.join(empty) or 'any task'}.")
    nodes = [{node for e in s for node in (e.sender, e.receiver) if node} for s in sets.values()]
    possible = set(edges_of(set.intersection(*nodes)))
    inside = overlap([s & possible for s in sets.values()], len(possible))
    return sorted(set.intersection(*sets.values()), key=str), inside


def _order(thing: Any) -> tuple:
    if isinstance(thing, Edge):
        return (str(thing),)
    return thing.layer, 1 << 30 if thing.head is None else thing.head


def by_kind(circuit: set[Component]) -> dict[str, set[Component]]:
    """A circuit's heads and MLPs apart."""
    return {
        "heads": {c for c in circuit if c.head is not None},
        "MLPs": {c for c in circuit if c.head is None},
    }


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
    columns = ["kind", "tasks", "sizes", "shared", "expected", "p"]
    return pd.DataFrame(rows, columns=[*columns, "layer_expected", "layer_p", "jaccard"])


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


MODES = ("kept", "ablated", "heads")
"""A set kept alone; ablated; only its heads ablated. A circuit with many of the MLPs is necessary
to almost anything, a random one too; so the last is the fairer test of necessity."""


def transfer(
    evaluators: Mapping[str, Evaluator],
    sets: Mapping[Any, Iterable[Component]],
    seed: int = 0,
    *,
    modes: Sequence[str] = MODES,
    progress: str | None = None,
) -> pd.DataFrame:
    """Each set kept alone (sufficiency) and ablated (necessity) on each task.

    Args:
        evaluators: Task to evaluator.
        sets: Name to components.
        seed: Draws the bootstrap.
        modes: Of :data:`MODES`.
        progress: Label of the progress bars.

    Returns:
        Columns ``mode``, ``set``, ``task``, ``mean``, ``low``, ``high``: share of the whole model's
        mean logit difference, with the 95% interval over prompts.

    Raises:
        UserError: when the whole model's mean logit difference on a task is not positive, or for
            an unknown mode.
    """
    rows = []
    for mode in modes:
        if mode not in MODES:
            raise unknown("mode", mode, MODES)
    for task, evaluator in evaluators.items():
        whole = positive_baseline(evaluator.intact.logit_diff, f"the whole model on {task}")
        for mode in modes:
            run = evaluator.kept if mode == "kept" else evaluator.replaced
            some = [by_kind(set(s))["heads"] if mode == "heads" else set(s) for s in sets.values()]
            label = progress and f"{progress}: {task}, {mode}"
            if not some:
                continue
            shares = run(some, progress=label).logit_diff / whole
            means, lows, highs = (v.tolist() for v in intervals(shares, seed))
            for name, *values in zip(sets, means, lows, highs, strict=True):
                rows.append([mode, name, task, *values])
    return pd.DataFrame(rows, columns=["mode", "set", "task", "mean", "low", "high"])


def against_random(
    evaluators: Mapping[str, Evaluator],
    circuits: Mapping[str, Iterable[Component]],
    random: Mapping[str, Mapping[str, Sequence[Iterable[Component]]]],
    *,
    modes: Sequence[str] = ("kept", "heads"),
    progress: str | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each circuit beside random ones, on the same prompts.

    Args:
        evaluators: Task to evaluator.
        circuits: Name to circuit.
        random: Kind of random circuit to circuit name to draws.
        modes: Of :data:`MODES`.
        progress: Label of the progress bars.

    Returns:
        One row per draw (``mode``, ``circuit``, ``kind``, ``draw``, ``task``, ``mean``), and one
        per comparison (``mode``, ``circuit``, ``kind``, ``task``, ``value`` of the circuit,
        ``random`` mean, ``p``: that a random one keeps as much, or that ablating it costs as much).
    """
    sets = {(name, "", -1): set(circuit) for name, circuit in circuits.items()}
    for kind, drawn in random.items():
        for name, draws in drawn.items():
            sets |= {(name, kind, i): set(draw) for i, draw in enumerate(draws)}
    found = transfer(evaluators, sets, modes=modes, progress=progress)
    for i, column in enumerate(("circuit", "kind", "draw")):
        found[column] = [key[i] for key in found["set"]]
    own = found[found["draw"] == -1].set_index(["mode", "circuit", "task"])["mean"]
    draws = found[found["draw"] != -1]
    rows = []
    for key, group in draws.groupby(["mode", "circuit", "kind", "task"], sort=False):
        mode, circuit, kind, task = key
        value, null = own[mode, circuit, task], group["mean"].to_numpy()
        sign = 1 if mode == "kept" else -1
        p = percentile_p(sign * value, sign * null)
        rows.append([mode, circuit, kind, task, value, null.mean(), p])
    columns = ["mode", "circuit", "kind", "draw", "task", "mean"]
    names = ["mode", "circuit", "kind", "task", "value", "random", "p"]
    return draws[columns].reset_index(drop=True), pd.DataFrame(rows, columns=names)


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


def role_table(
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
