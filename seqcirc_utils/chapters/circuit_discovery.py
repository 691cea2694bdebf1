"""Which components suffice: searches for a circuit, and how good what they find is."""

from dataclasses import dataclass

import pandas as pd

from seqcirc_utils.chapters.findings import Findings, part, table
from seqcirc_utils.circuits.circuit import Circuit


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
        estimates: A row per component of the model: the ``exact`` effect of its mean ablation, and
            the gradient's ``estimate`` of it.
        steps: A row per trial of each ``search``: what was tried, and the ``score`` without it.
        curve: The score by circuit size, components in the order of the ranked search.
        by_ablation: Each circuit's score under each kind of ablation, with 95% intervals, and its
            ``kl`` (nats, to the whole model) and ``accuracy``.
        edge_effects: A row per edge of ``circuit``: the score without it.
        faults: How often two faults of the published code judge an edge differently.
        quality: Search to score to ``mean``, ``low``, ``high``; see
            :func:`~seqcirc_utils.circuits.quality.quality`.
        scores: Search to the score on the prompts it was found with.
        accuracy: The share of evaluation prompts that the whole model answers correctly.
        random: Kind of random circuit to scores.
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
        component=str,
        change=float,
        p=float,
        q=float,
        inclusion=float,
        prompts=float,
        seed=float,
        order=float,
    )
    estimates: pd.DataFrame = table("estimates.csv", component=str, exact=float, estimate=float)
    steps: pd.DataFrame = table(
        "steps.csv", search=str, phase=str, component=str, size=int, score=float, removed=bool
    )
    curve: pd.DataFrame = table("curve.csv", size=int, faithfulness=float)
    by_ablation: pd.DataFrame = table(
        "ablations.csv",
        circuit=str,
        ablation=str,
        mean=float,
        low=float,
        high=float,
        kl=float,
        accuracy=float,
    )
    edge_effects: pd.DataFrame = table(
        "edges.csv",
        edge=str,
        sender=str,
        receiver=str,
        input=str,
        score=float,
        estimate=float,
        exact=bool,
    )
    faults: pd.DataFrame = table(
        "faults.csv",
        {
            "edges": str,
            "candidates": int,
            "kept as meant": int,
            "kept by the code": int,
            "judged differently": int,
        },
    )
    quality: dict[str, dict[str, dict[str, float]]]
    scores: dict[str, float]
    accuracy: float
    random: dict[str, list[float]]
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
