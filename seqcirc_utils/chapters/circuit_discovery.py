"""Which components suffice: searches for a circuit, and how good what they find is."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import pandas as pd
from scipy.stats import spearmanr

from seqcirc_utils.ablation.edges import EdgeEvaluator
from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import record
from seqcirc_utils.chapters.findings import Findings, each, part, table
from seqcirc_utils.chapters.patching import Patching
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.circuits import chance, edge_search, quality, released, search
from seqcirc_utils.circuits.circuit import Circuit
from seqcirc_utils.circuits.search import Discovery
from seqcirc_utils.components import Component, components, split
from seqcirc_utils.errors import section
from seqcirc_utils.statistics import percentile_p, positive_baseline, rate
from seqcirc_utils.versions import versions

SWEEP, RANKED, TWO_SIDED = "published sweep", "ranked search", "ranked, two-sided"
REPEATED = {"seed": "ranked search, other prompts", "order": "published rule, random order"}
"""Kinds of repeated searches that share neither prompts nor order with the first one."""
SIZES = (0.02, 0.04, 0.08, 0.12, 0.2, 0.35, 0.6)
"""Shares of all components at which the curve is measured."""
SCREEN = 0.005
"""Edges whose estimated effect is a smaller share of the model's score are not run."""
RANDOM_PROMPTS = 8
"""Random circuits are scored on so many prompts at most: they are far below a found one."""
RELEASED_PROMPTS = 2
"""Prompts on which edges are cut as the released code cuts them, which is slow."""


@dataclass(frozen=True, kw_only=True)
class CircuitDiscovery(Findings):
    """Three circuits of a task, and one of them judged on prompts that no search has seen.

    Scores are shares of the whole model's mean logit difference. Searches go by their names:
    ``published sweep``, ``ranked search``, ``ranked, two-sided``.

    Attributes:
        circuit: The circuit of the ranked search, which the chapter judges.
        published: The circuit of the published sweep.
        two_sided: The circuit of the ranked search that may not overshoot the whole model either.
        components: A row per component of ``circuit``, the most needed first: the ``change`` of the
            score when it is removed, ``p`` and ``q``; the share of repeated searches that found it
            again, over all (``inclusion``) and by kind (NaN: no search came through).
        estimates: A row per component of the model: the ``exact`` effect of its mean ablation, as
            chapter 03 tells it, and the gradient's ``estimate`` of it.
        repeats: The repeated searches and what each found; see
            :func:`~seqcirc_utils.circuits.quality.repeated`.
        steps: A row per trial of each ``search``: what was tried, and the ``score`` without it.
        curve: The score by circuit size, components in the order of the ranked search.
        by_ablation: Each circuit's score under each kind of ablation, with 95% intervals, and its
            ``kl`` (nats, to the whole model) and ``accuracy``.
        edge_effects: A row per edge of ``circuit``: the score without it.
        calls: The published sweep's closest calls and its end, scored as its code scores them; see
            :func:`~seqcirc_utils.circuits.released.closest_calls`.
        faults: How often each piece of the released edge step judges an edge of ``circuit``
            differently; see :func:`~seqcirc_utils.circuits.released.edge_step_by_piece`.
        quality: Search to score to ``mean``, ``low``, ``high``; see
            :func:`~seqcirc_utils.circuits.quality.quality`.
        n_searched: Discovery prompts of the searches; the two-sided one has half of them.
        scores: Search to the score on the prompts it was found with.
        accuracy: The share of evaluation prompts that the whole model answers correctly.
        random: Kind of random circuit to scores, on the first ``n_random`` evaluation prompts.
        n_random: How many of them that is.
        beside_random: The score of ``circuit`` on the same prompts.
        p: Kind of random circuit to the share of them that are as good as ``circuit``.
        cpr: Area below ``curve``.
        cmd: Area between ``curve`` and 1.
        spearman: Rank correlation of ``estimates``.
        recall: The share that the estimate names of the components whose ablation costs most.
        returning: Components outside ``circuit`` that at least half of the repeated searches found.
        trials: Search to the number of circuits evaluated.
        edges: Edge rule to the number of edges kept.
        edge_scores: Edge rule to the score of what it keeps, on ``discovery`` and ``evaluation``
            prompts.
        all_edges: The score of ``circuit`` on the prompts of the edge searches.
        cpu_seconds: Part of the chapter to processor time.
        missing: What does not apply to the model, and why.
    """

    stage = "04_circuit_discovery"

    circuit: Circuit = part("circuit.json", Circuit)
    published: Circuit = part("circuit.published.json", Circuit)
    two_sided: Circuit = part("circuit.two_sided.json", Circuit)
    components: pd.DataFrame = table(
        "csv",
        each(str, "component")
        | each(float, "change", "low", "high", "p", "q")
        | each(float, "inclusion", "prompts", "seed", "order"),
    )
    estimates: pd.DataFrame = table("estimates.csv", component=str, exact=float, estimate=float)
    repeats: pd.DataFrame = table("repeats.csv", kind=str, repeat=int, components=str)
    steps: pd.DataFrame = table(
        "steps.csv", search=str, phase=str, component=str, size=int, score=float, removed=bool
    )
    curve: pd.DataFrame = table("curve.csv", size=int, faithfulness=float)
    by_ablation: pd.DataFrame = table(
        "ablations.csv",
        each(str, "circuit", "ablation") | each(float, "mean", "low", "high", "kl", "accuracy"),
    )
    edge_effects: pd.DataFrame = table(
        "edges.csv",
        each(str, "edge", "sender", "receiver", "input") | each(float, "score", "estimate"),
        exact=bool,
    )
    calls: pd.DataFrame = table(
        "released.csv",
        each(str, "phase", "component") | each(float, "meant", "released") | {"differs": bool},
    )
    faults: pd.DataFrame = table("faults.csv", released.COLUMNS)
    quality: dict[str, dict[str, dict[str, float]]]
    n_searched: int
    scores: dict[str, float]
    accuracy: float
    random: dict[str, list[float]]
    n_random: int
    beside_random: float
    p: dict[str, float]
    cpr: float
    cmd: float
    spearman: float
    recall: float
    returning: list[str]
    trials: dict[str, int]
    edges: dict[str, int]
    edge_scores: dict[str, dict[str, float]]
    all_edges: float | None
    cpu_seconds: dict[str, float]
    missing: dict[str, str]

    @property
    def by_search(self) -> dict[str, set[Component]]:
        """Search to what it found; of the repeated searches, the first of each kind."""
        own = {RANKED: self.circuit, TWO_SIDED: self.two_sided, SWEEP: self.published}
        first = self.repeats.drop_duplicates("kind").set_index("kind")["components"]
        repeats = {
            name: set(map(Component.parse, first[kind].split()))
            for kind, name in REPEATED.items()
            if kind in first
        }
        return {name: found.components for name, found in own.items()} | repeats

    @classmethod
    def measure(cls, at: Setting) -> Self:
        """Search, and judge what was found; see the class."""
        lm, sets, seconds = at.model, at.sets(), {}
        exact = at.read(Patching).effects
        judging = Evaluator(lm, sets.evaluation, at.means())
        whole = positive_baseline(judging.intact.logit_diff, f"{lm.facts.title} on {at['task']}")
        everything = judging.kept([components(lm)]).logit_diff.mean().item() / whole
        assert abs(everything - 1) < 1e-4, f"all components keep {everything:.4f} of the score"

        searches = _searches(at, seconds)
        assert all(found.score >= at["threshold"] for found in searches.values())
        circuits = {name: found.components for name, found in searches.items()}
        ours = circuits[RANKED]
        judged = {name: quality.quality(judging, c, at["seed"]) for name, c in circuits.items()}
        estimated = _estimated(judging, exact, whole, max(1, len(ours) // 2))
        with _timed(seconds, "judging"):
            needed = quality.minimality(judging, ours, seed=at["seed"], progress="Minimality")
            compared = _compared(at, judging, needed, searches[RANKED])
        with _timed(seconds, "stability"):
            found_again = _found_again(at, needed)
        by_ablation = _by_ablation(at, circuits)
        with _timed(seconds, "edges"):
            names, about_edges = _edges(at, judging, ours, whole)
        with _timed(seconds, "as released"):
            as_released, not_released = _as_released(
                at, judging, searches[SWEEP], needed["component"].tolist()
            )
        about_edges["missing"] |= not_released
        steps = [{"search": name} | step for name, s in searches.items() for step in s.steps]
        return cls(
            circuit=_circuit(at, RANKED, ours, judged, names),
            published=_circuit(at, SWEEP, circuits[SWEEP], judged),
            two_sided=_circuit(at, TWO_SIDED, circuits[TWO_SIDED], judged),
            steps=pd.DataFrame(steps),
            by_ablation=by_ablation,
            quality=judged,
            n_searched=len(at.searched(sets.discovery)),
            scores={name: found.score for name, found in searches.items()},
            trials={name: found.trials for name, found in searches.items()},
            accuracy=rate(judging.intact.correct).mean,
            cpu_seconds=seconds,
            **estimated,
            **compared,
            **found_again,
            **about_edges,
            **as_released,
        )


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note the processor time that a part takes."""
    begun = time.process_time()
    yield
    seconds[name] = round(time.process_time() - begun, 1)


def _searches(at: Setting, seconds: dict[str, float]) -> dict[str, Discovery]:
    """Run the three searches by name."""
    prompts = at.searched(at.sets().discovery)
    whole = Evaluator(at.model, prompts, at.means())
    # The two-sided search is slow, and not the main result.
    half = Evaluator(at.model, prompts[range((len(prompts) + 1) // 2)], at.means())
    ways = {
        SWEEP: (search.sweep, whole, "sweep.json"),
        RANKED: (search.ranked, whole, "ranked.json"),
        TWO_SIDED: (partial(search.ranked, two_sided=True), half, "two_sided.json"),
    }
    found = {}
    for name, (way, evaluator, file) in ways.items():
        with _timed(seconds, name):
            found[name] = way(
                evaluator,
                at["threshold"],
                checkpoint=at.checkpoint(file),
                progress=name.capitalize(),
            )
    return found


def _by_ablation(at: Setting, circuits: Mapping[str, set[Component]]) -> pd.DataFrame:
    """Each circuit under each kind of ablation."""
    lm, sets, means = at.model, at.sets(), at.means()
    kinds = {"mean": means, "zero": means.zero()}
    kinds["resample"] = record(lm, sets.corrupted).activations
    return quality.by_ablation(lm, sets.evaluation, kinds, circuits, at["seed"])


def _circuit(
    at: Setting,
    name: str,
    kept: set[Component],
    judged: dict[str, dict[str, dict[str, float]]],
    edges: list[str] | None = None,
) -> Circuit:
    """What a search kept, with how it was found."""
    heads, mlps = split(list(kept))
    return Circuit(
        model=at["model"],
        task=at["task"],
        method=name,
        ablation="mean",
        threshold=at["threshold"],
        n_prompts=at["n_prompts"],
        seed=at["seed"],
        heads=heads,
        mlps=mlps,
        faithfulness=judged[name]["faithfulness"],
        edges=edges or [],
        versions=versions(),
    )


def _estimated(judging: Evaluator, exact: pd.DataFrame, whole: float, n: int) -> dict[str, Any]:
    """The gradient's estimates beside exact effects, and how many it names of the ``n`` largest."""
    guess = {str(c): effect / whole for c, effect in judging.estimate().items()}
    table = exact[["component", "ablation"]].rename(columns={"ablation": "exact"})
    table["estimate"] = table["component"].map(guess)
    costly, named = (set(table.nsmallest(n, by)["component"]) for by in ("exact", "estimate"))
    rho = spearmanr(table["exact"], table["estimate"]).statistic
    return {"estimates": table, "spearman": float(rho), "recall": len(costly & named) / n}


def _compared(
    at: Setting, judging: Evaluator, needed: pd.DataFrame, found: Discovery
) -> dict[str, Any]:
    """The circuit beside what its ranking keeps at other sizes, and beside random circuits."""
    everything = components(at.model)
    # The circuit's components, the most needed first; then what the search let go of last.
    gone = [name for step in found.steps if step["removed"] for name in step["component"].split()]
    ranking = [Component.parse(name) for name in [*needed["component"], *gone[::-1]]]
    sizes = [*(round(len(everything) * share) for share in SIZES), len(needed)]
    curve, cpr, cmd = quality.curve(judging, ranking, sizes)
    few = judging.first(RANDOM_PROMPTS)
    if not few.intact.logit_diff.mean() > 0:  # shares of these would mean nothing
        few = judging
    base = few.intact.logit_diff.mean().item()

    def share(circuits: Sequence[Iterable[Component]], progress: str | None = None) -> list[float]:
        scores = few.differences(few.outside(circuits), progress=progress)  # [circuit, n]
        return (scores.mean(1) / base).tolist()

    own, random = share([found.components])[0], {}
    for kind, by_layer, n in (
        ("random, same size", False, max(1, at["n_null"] // 5)),
        ("random heads, same layers", True, at["n_null"]),
    ):
        drawn = chance.random_like(found.components, everything, n, at["seed"], by_layer=by_layer)
        random[kind] = share(drawn, kind.capitalize())
    return {
        "curve": curve,
        "cpr": cpr,
        "cmd": cmd,
        "random": random,
        "n_random": len(few.prompts),
        "beside_random": own,
        "p": {kind: percentile_p(own, scores) for kind, scores in random.items()},
    }


def _found_again(at: Setting, needed: pd.DataFrame) -> dict[str, Any]:
    """How often repeated searches find each component of the circuit, and which others."""
    repeats = quality.repeated(
        at.model,
        at.draw,
        (len(at.searched(at.sets().discovery)) + 3) // 4,
        at["threshold"],
        at["n_repeats"],
        at["seed"],
        progress="Repeated searches",
    )
    again = quality.inclusion(repeats, components(at.model))
    outside = again[~again["component"].isin(needed["component"]) & (again["inclusion"] >= 0.5)]
    return {
        "components": needed.merge(again, on="component"),
        "repeats": repeats,
        "returning": outside["component"].tolist(),
    }


def _edges(
    at: Setting, judging: Evaluator, ours: set[Component], whole: float
) -> tuple[list[str], dict[str, Any]]:
    """The edges that the ranked search keeps, and all fields that are about edges."""
    about: dict[str, Any] = {"edge_effects": CircuitDiscovery.empty("edge_effects")}
    about |= {"edges": {}, "edge_scores": {}, "all_edges": None, "missing": {}}
    rows = range(min(at["n_edge_prompts"], at["n_prompts"]))
    few = Evaluator(at.model, at.sets().discovery[rows], at.means())
    with section(about["missing"], "edges"):
        base = positive_baseline(few.intact.logit_diff, "the whole model, on the edges' prompts,")
        graph = EdgeEvaluator(few, ours)
        own = graph.score.mean().item() / base
        # On so few prompts the circuit may fall short of the threshold. What was only estimated
        # costs less than SCREEN, and never decides.
        bar = min(at["threshold"], own - SCREEN)
        effects = edge_search.single_effects(
            graph, screen=SCREEN, checkpoint=at.checkpoint("edges.json"), progress="Single edges"
        )
        rules = {
            "published rule": edge_search.published(graph, bar, effects=effects),
            "corrected rule": edge_search.published(graph, margin=0.02, effects=effects),
            RANKED: edge_search.ranked(
                graph,
                at["threshold"],
                one_by_one=30,
                checkpoint=at.checkpoint("edges.ranked.json"),
                progress="Edges",
            ),
        }
        unseen = EdgeEvaluator(judging, ours).differences([found.edges for found in rules.values()])
        scores = (unseen.mean(1) / whole).tolist()  # [rule]
        about |= {
            "edge_effects": effects,
            "edges": {name: len(found.edges) for name, found in rules.items()},
            "edge_scores": {
                name: {"discovery": found.score, "evaluation": score}
                for (name, found), score in zip(rules.items(), scores, strict=True)
            },
            "all_edges": own,
        }
        return sorted(map(str, rules[RANKED].edges)), about
    return [], about


def _as_released(
    at: Setting, judging: Evaluator, found: Discovery, needed: Sequence[str]
) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """The published procedure as its code runs it: the fields about it, and what does not apply."""
    missing: dict[str, str] = {}
    about = {name: CircuitDiscovery.empty(name) for name in ("calls", "faults")}
    ours = [Component.parse(name) for name in needed]
    with section(missing, "calls"):
        finding = Evaluator(at.model, at.searched(at.sets().discovery), at.means())
        corrupted, n = record(at.model, at.sets().means, writes=False), at["n_calls"]
        about["calls"] = released.closest_calls(finding, corrupted, found.steps, at["threshold"], n)
    with section(missing, "released edges"):
        few = judging.first(RELEASED_PROMPTS)
        partners = record(at.model, at.sets().corrupted[range(len(few.prompts))], writes=False)
        heads, mlps = ([c for c in ours if (c.head is None) == is_mlp] for is_mlp in (False, True))
        senders = heads[: at["n_senders"]] + mlps[: at["n_senders"]]
        about["faults"] = released.edge_step_by_piece(
            few, ours, partners, at["threshold"], senders=senders, screen=SCREEN
        )
    return about, missing
