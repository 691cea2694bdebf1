"""All methods that score components, side by side: quality against cost."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import torch

from seqcirc_utils.ablation.evaluator import Evaluator, logit_difference
from seqcirc_utils.ablation.replay import record
from seqcirc_utils.chapters.circuit_discovery import RANKED, SWEEP, CircuitDiscovery
from seqcirc_utils.chapters.findings import Findings, array, table
from seqcirc_utils.chapters.patching import Patching
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import UserError
from seqcirc_utils.methods import benchmark, whole_graph
from seqcirc_utils.methods.evaluation import Circuits, Smallest, agreement, smallest
from seqcirc_utils.methods.mib_format import Scores, Sizes
from seqcirc_utils.methods.registry import METHODS, Scored, order_of_removal, ranked_passes, scores
from seqcirc_utils.methods.slopes import Pairs
from seqcirc_utils.statistics import positive_baseline

SAMPLED = 10
"""So many components are run again, to time exact methods and to check their effects."""
EDGES = 12
"""Strongest edges by each estimate that are run exactly."""
WRITTEN = {"published sweep": SWEEP, "ranked search": RANKED}
"""Methods whose scores chapter 04 has: their searches' names there."""


@dataclass(frozen=True, kw_only=True)
class Methods(Findings):
    """What each method says of the components, what it costs, and how good it is.

    Scored on the first ``n_scored`` evaluation prompts (the searches: on the discovery prompts),
    judged on others.

    Attributes:
        methods: A row per method: forward ``passes`` and CPU ``seconds`` (not ``timed``: from a
            sample of the components); MIB's ``cpr`` and ``cmd`` with counterfactual (``mean_…``:
            mean) ablation, 95% intervals over prompts; the ``size`` of the smallest circuit that
            keeps the threshold of the whole model's logit difference (the published ratio) under
            mean ablation, and its ``share``; rank correlation and recall against exact effects on
            the judged prompts, of heads and of MLPs but the first; ``first_mlp``, the first MLP's
            score over its exact effect (NaN where scores are ranks, or shares of something else).
        grid: MIB's faithfulness at each size, by method, ablation and ranking.
        scores: A row per component, a column per method.
        edges: The strongest edges of the whole model: two estimates, and exactly, in logits.
        edge_patching: Edge attribution patching ``[writer, reader]``, in logits.
        edge_ig: EAP-IG inputs ``[writer, reader]``, in logits.
        edge_seconds: CPU seconds of the two, of as many prompts as ``n_scored``.
        n_scored: Pairs of prompts that components were scored on.
        n_judged: Prompts that judged.
        threshold: The share that a circuit keeps.
        missing: Method (or ``edges``) to the reason why it is not here.
    """

    stage = "10_methods"

    methods: pd.DataFrame = table(
        "csv",
        {"method": str, "source": str, "passes": float, "seconds": float, "timed": bool}
        | {f"{k}{e}": float for k in ("cpr", "cmd", "size", "share") for e in ("", "_low", "_high")}
        | {"mean_cpr": float, "mean_cmd": float}
        | {f"{k}_{part}": float for k in ("spearman", "recall") for part in ("heads", "mlps")}
        | {"first_mlp": float},
    )
    grid: pd.DataFrame = table(
        "grid.csv", method=str, ablation=str, ranking=str, size=int, edges=int, faithfulness=float
    )
    scores: pd.DataFrame = table("scores.csv", component=str, more=float)
    edges: pd.DataFrame = table("edges.csv", edge=str, patching=float, ig=float, exact=float)
    edge_patching: np.ndarray = array()
    edge_ig: np.ndarray = array()
    edge_seconds: dict[str, float]
    n_scored: int
    n_judged: int
    threshold: float
    missing: dict[str, str]

    @classmethod
    def measure(cls, at: Setting) -> Self:
        """Score by every method, and judge; see the class."""
        n, sets, lm = at["n_scored"], at.sets(), at.model
        _judging(at, at["n_prompts"], "n_prompts")  # refused before chapter 03 is made
        patching = at.read(Patching)
        known_on = int((~np.isnan(patching.ablation)).all(0).sum())
        rest = _judging(at, known_on, "n_exact of chapter 03")
        clean, corrupted = sets.evaluation[range(n)], sets.corrupted[range(n)]
        whole = positive_baseline(
            Evaluator(lm, sets.evaluation[rest], at.means()).intact.logit_diff,
            f"{lm.facts.title} on {at['task']}, on the prompts to judge on,",
        )
        exact = -patching.ablation[:, rest].mean(1)
        known = _from_before(at, patching)
        found, missing = dict(known), {}
        for name in METHODS:
            if name not in known:
                try:
                    found[name] = scores(
                        *(lm, clean, corrupted),
                        method=name,
                        means=at.means(),
                        n_steps=at["n_steps"],
                        seed=at["seed"],
                        known=found,
                    )
                except UserError as refusal:
                    missing[name] = str(refusal)
        found = {name: found[name] for name in METHODS if name in found}
        grid, areas, least = _judged(at, found, sets.evaluation[rest], sets.corrupted[rest])
        rows = [
            _row(components(lm), name, one, exact, whole, areas[name], least[name])
            for name, one in found.items()
        ]
        names = {"component": list(map(str, components(lm)))}
        edges = _edges(at, Pairs.recorded(lm, clean, corrupted), missing)
        return cls(
            methods=pd.DataFrame(rows, columns=cls.empty("methods").columns),
            grid=grid,
            scores=pd.DataFrame(names | {name: one.values for name, one in found.items()}),
            n_scored=n,
            n_judged=len(rest),
            threshold=at["threshold"],
            missing=missing,
            **edges,
        )

    def exported(self, method: str, sizes: Sizes) -> Scores:
        """A method's scores for a file that the benchmark reads.

        Args:
            method: Its name; of ``EAP-IG inputs`` and ``attribution patching`` with edges.
            sizes: The model's shape, from :func:`~seqcirc_utils.methods.whole_graph.sizes_of`.
        """
        nodes = np.concatenate([[np.nan], self.scores[method].to_numpy()])
        tables = {"EAP-IG inputs": self.edge_ig, "attribution patching": self.edge_patching}
        edges = tables.get(method, np.empty(0))
        if not len(edges):
            edges = np.full((len(sizes.writers), len(sizes.readers)), np.nan)
        return Scores(sizes, nodes, edges)


def _judging(at: Setting, known_on: int, limit: str) -> range:
    """The prompts that judge: after the scored ones, of those where exact effects are known."""
    n = at["n_scored"]
    rest = range(n, min(known_on, n + at["n_judged"]))
    if not rest:
        raise UserError(
            f"n_scored is {n} of {known_on} prompts ({limit}), which leaves none to judge on: "
            "take fewer."
        )
    return rest


EXACT = ("exact ablation", "activation patching")
"""Methods whose effects chapter 03 has."""


def _from_before(at: Setting, patching: Patching) -> dict[str, Scored]:
    """Scores that chapters 03 and 04 have found; exact ones are checked and timed on a sample."""
    n, everything = at["n_scored"], components(at.model)
    before = at.read(CircuitDiscovery)
    found, prompts = {}, before.n_searched
    for name, way in WRITTEN.items():
        trials = before.steps[before.steps["search"] == way].to_dict("records")
        values = order_of_removal(everything, trials).double().numpy()
        passes = ranked_passes(trials, prompts) if way == RANKED else len(trials) * prompts
        found[name] = Scored(name, values, float(passes), before.cpu_seconds[way])
    clean, corrupted = (part[range(n)] for part in (at.sets().evaluation, at.sets().corrupted))
    ablating = Evaluator(at.model, clean, at.means())
    own = ablating.run.activations
    kept = {"exact ablation": (ablating, -patching.ablation)}
    if patching.patching.shape[1] >= n:
        restoring = Evaluator(at.model, corrupted, own, answers=clean)
        kept["activation patching"] = restoring, patching.patching
    step = max(1, len(everything) // SAMPLED)
    sample = everything[step // 2 :: step]
    for name, (evaluator, effects) in kept.items():
        begun = time.process_time()
        again = evaluator.differences([[c] for c in sample]) - evaluator.intact.logit_diff
        seconds = (time.process_time() - begun) * len(everything) / len(sample)
        _check(name, -again if name == "exact ablation" else again, effects, sample, everything)
        passes = (len(everything) + 1 + (name != "exact ablation")) * n
        found[name] = Scored(name, effects[:, :n].mean(1, dtype=float), passes, seconds)
    return found


def _check(
    name: str,
    again: torch.Tensor,
    effects: np.ndarray,
    sample: list[Component],
    everything: list[Component],
) -> None:
    """What chapter 03 found of the sample is what is found now, up to its unit."""
    rows = [everything.index(c) for c in sample]
    then, now = effects[rows, : again.shape[1]], again.double().numpy()
    if np.abs(then).max() > 0:
        unit = (then * now).sum() / (then**2).sum()
        assert np.allclose(then * unit, now, rtol=1e-2, atol=2e-3), f"{name} is not chapter 03's"


def _judged(
    at: Setting, found: Mapping[str, Scored], clean: Any, corrupted: Any
) -> tuple[pd.DataFrame, dict[str, dict[str, list[Any]]], dict[str, Smallest]]:
    """Faithfulness on MIB's grid, its areas by method and ablation, and smallest circuits."""
    lm, pairs = at.model, Pairs.recorded(at.model, clean, corrupted)
    ends = record(lm, at.sets().means, writes=False).residual[-1].mean(0, keepdim=True)
    mean = pairs.clean.with_(replacement=at.means())
    kinds = {
        "counterfactual": Circuits(benchmark.Judge.counterfactual(pairs)),
        "mean": Circuits(benchmark.Judge.mean(mean, ends, logit_difference)),
    }
    ranked = {
        name: [benchmark.ranking(lm, one.values, absolute) for absolute in (False, True)]
        for name, one in found.items()
    }
    rows, areas = [], {name: {} for name in found}
    for kind, circuits in kinds.items():
        for name, orders in ranked.items():
            both = [circuits.areas(order, at["seed"]) for order in orders]
            areas[name][kind] = [both[0][1][0], both[1][1][1]]  # CPR by score, CMD by size
            for by, order, (curve, _) in zip(("score", "size"), orders, both, strict=True):
                for size, value in zip(benchmark.sizes(len(order)), curve, strict=True):
                    edges = benchmark.weighted_edge_count(order[:size], lm, possible_only=True)
                    rows.append([name, kind, by, size, edges, float(value)])
    least = smallest(
        kinds["mean"], {name: orders[0] for name, orders in ranked.items()}, at["threshold"]
    )
    columns = ["method", "ablation", "ranking", "size", "edges", "faithfulness"]
    return pd.DataFrame(rows, columns=columns), areas, least


def _row(
    everything: list[Component],
    name: str,
    one: Scored,
    exact: np.ndarray,
    whole: float,
    areas: Mapping[str, list[Any]],
    least: Smallest,
) -> dict[str, Any]:
    """A method's row of the table."""
    row: dict[str, Any] = {"method": name, "source": METHODS[name].source, "passes": one.passes}
    row |= {"seconds": one.seconds, "timed": name not in EXACT}
    ranges = dict(zip(("cpr", "cmd"), areas["counterfactual"], strict=True))
    for key, value in (ranges | {"size": least.size, "share": least.share}).items():
        row |= {key: value.mean, f"{key}_low": value.low, f"{key}_high": value.high}
    row |= {"mean_cpr": areas["mean"][0].mean, "mean_cmd": areas["mean"][1].mean}
    mlps = np.array([c.head is None for c in everything])
    for part, rows in (("heads", np.flatnonzero(~mlps)), ("mlps", np.flatnonzero(mlps)[1:])):
        for key, value in agreement(one.values[rows], exact[rows]).items():
            row[f"{key}_{part}"] = value
    first = int(np.flatnonzero(mlps)[0])
    unit = 1.0 if name in EXACT else whole
    other = name in (*WRITTEN, "random", "ensemble", "activation patching")
    row["first_mlp"] = float("nan") if other else one.values[first] / unit / exact[first]
    return row


def _edges(at: Setting, pairs: Pairs, missing: dict[str, str]) -> dict[str, Any]:
    """All fields that are about edges of the whole model."""
    seconds, found = {}, {}
    try:
        for name, n_steps in (("edge_patching", 0), ("edge_ig", at["n_steps"])):
            begun = time.process_time()
            found[name] = whole_graph.edge_scores(pairs, n_steps)
            seconds[name] = time.process_time() - begun
    except UserError as refusal:
        missing["edges"] = str(refusal)
        none = {name: np.empty(0) for name in ("edge_patching", "edge_ig")}
        return none | {"edges": Methods.empty("edges"), "edge_seconds": {}}
    sizes = whole_graph.sizes_of(at.model)
    places: dict[tuple[int, int], None] = {}
    for estimates in found.values():
        order = np.argsort(-np.abs(np.nan_to_num(estimates)), axis=None, kind="stable")
        for flat in order[:EDGES]:
            writer, reader = np.unravel_index(int(flat), estimates.shape)
            places[int(writer), int(reader)] = None
    exact = whole_graph.exact_edges(pairs, list(places))
    rows = [
        [f"{sizes.writers[w]}->{sizes.readers[r]}", *(float(e[w, r]) for e in found.values()), x]
        for (w, r), x in zip(places, exact.tolist(), strict=True)
    ]
    return found | {
        "edges": pd.DataFrame(rows, columns=["edge", "patching", "ig", "exact"]),
        "edge_seconds": seconds,
    }
