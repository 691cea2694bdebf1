"""What the faults of the released code change: in the node search (B34), and edge by edge."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from seqcirc_utils.ablation import released_edges as pieces
from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.released import shifted_means
from seqcirc_utils.ablation.released_edges import ReleasedEdges
from seqcirc_utils.ablation.replay import Run
from seqcirc_utils.components import Component, Edge
from seqcirc_utils.statistics import positive_baseline

COLUMNS = {
    "edges": str,
    "candidates": int,
    "kept as meant": int,
    "kept by the code": int,
    "judged differently": int,
}

END = "the circuit found"
"""The last row of the closest calls."""

ROWS: dict[str, tuple[str, Callable[[Edge], bool]]] = {
    "all edges: each prompt's corrupted run": (pieces.CORRUPTED, lambda e: True),
    "from heads: MLPs computed anew": (pieces.ANEW, lambda e: e.sender.head is not None),
    "from MLPs: nothing frozen": (pieces.UNFROZEN, lambda e: e.sender.head is None),
    "head into its layer's MLP: not tried": (
        pieces.SKIPPED,
        lambda e: e.receiver is not None and e.sender.layer == e.receiver.layer,
    ),
    "MLP into head (B12)": (pieces.B12, lambda e: e.sender.head is None and e.source != ""),
    "MLP into logits (B13)": (
        pieces.B13,
        lambda e: e.sender.head is None and e.receiver is None,
    ),
}
"""Each piece of the released edge step, and the edges that it is about."""


def edge_step_by_piece(
    evaluator: Evaluator,
    nodes: Iterable[Component],
    corrupted: Run,
    threshold: float = 0.8,
    *,
    senders: Iterable[Component] | None = None,
    screen: float = 0.005,
) -> pd.DataFrame:
    """Edges that the published rule keeps, with each piece of the released step alone and with all.

    Args:
        evaluator: Prompts and the whole model's means.
        nodes: The node circuit.
        corrupted: The run of corrupted prompts, as many as there are prompts.
        threshold: An edge stays if the score without it is a smaller share of the whole model's
            (or of what the circuit keeps less ``screen``, where that is less: no estimate decides).
        senders: Only edges out of these; out of all when ``None``.
        screen: Cuts of a smaller estimated effect, as a share, are estimated.

    Returns:
        A row per piece, and one with all of them and the shifted means of MLPs (B34). Columns as
        in :data:`COLUMNS`: the ``candidates`` among the edges as meant, and how many are kept.

    Raises:
        UserError: as :class:`~seqcirc_utils.ablation.released_edges.ReleasedEdges` does.
    """
    nodes = list(nodes)
    some = set(nodes if senders is None else senders)
    whole = positive_baseline(evaluator.intact.logit_diff, "the whole model")

    def kept(on: Evaluator, which: Iterable[str], about: Callable[[Edge], bool]) -> set[Edge]:
        circuit = ReleasedEdges(on, nodes, corrupted, which)
        bar = min(threshold, circuit.score.mean().item() / whole - screen)
        edges = [e for e in circuit.edges if e.sender in some and about(e)]
        if not edges:
            return set()
        scores = circuit.without(edges, screen * whole) / whole
        return {e for e, score in zip(edges, scores.tolist(), strict=True) if score < bar}

    everything = [
        e for e in ReleasedEdges(evaluator, nodes, corrupted, ()).edges if e.sender in some
    ]
    meant = kept(evaluator, (), lambda e: True)
    rows: list[tuple[str, set[Edge], set[Edge], set[Edge]]] = []
    for name, (piece, about) in ROWS.items():
        these = {e for e in everything if about(e)}
        code = kept(evaluator, [piece], about)
        rows.append((name, these, meant & these, code))
    (outside,) = evaluator.outside([nodes])
    shifted = shifted_means(evaluator.replacement, corrupted, outside)
    all_of_it = kept(evaluator.with_(replacement=shifted), pieces.PIECES, lambda e: True)
    rows.append(("all of these, as released (with B34)", set(everything), meant, all_of_it))
    counts = [[name, len(c), len(m), len(k), len(m ^ k)] for name, c, m, k in rows]
    return pd.DataFrame(counts, columns=list(COLUMNS))


def closest_calls(
    evaluator: Evaluator,
    corrupted: Run,
    steps: Sequence[Mapping[str, Any]],
    threshold: float = 0.8,
    n: int = 4,
) -> pd.DataFrame:
    """The published sweep's closest calls, scored again as the released code scores them (B34).

    Args:
        evaluator: Discovery prompts, and the means of ``corrupted``.
        corrupted: The run of the corrupted prompts behind the means.
        steps: The sweep's trials, as in :class:`~seqcirc_utils.circuits.search.Discovery`.
        threshold: Share of the whole model's mean logit difference that the sweep kept.
        n: How many of the trials whose score lies nearest to the threshold.

    Returns:
        A row per call in the sweep's order, and a last one for the circuit at its end: ``phase``,
        ``component``, the score without it as ``meant`` and as ``released`` (shares of the whole
        model's), and whether that ``differs`` in what is removed.

    Raises:
        UserError: for a whole model whose mean logit difference is not positive.
    """
    whole = positive_baseline(evaluator.intact.logit_diff, "the whole model")
    near = sorted(range(len(steps)), key=lambda i: abs(steps[i]["score"] - threshold))[:n]
    out: set[Component] = set()

    def row(phase: str, name: str, removed: set[Component], meant: float) -> dict[str, Any]:
        means = shifted_means(evaluator.replacement, corrupted, removed)
        again = evaluator.with_(replacement=means).differences([removed]).mean().item()
        score = again / whole
        told = {"phase": phase, "component": name, "meant": meant, "released": score}
        return told | {"differs": (meant >= threshold) != (score >= threshold)}

    rows, score = [], 1.0
    for i, step in enumerate(steps):
        gone = {Component.parse(step["component"])}
        if i in near:
            rows.append(row(step["phase"], step["component"], out | gone, step["score"]))
        if step["removed"]:
            out |= gone
            score = step["score"]
    rows.append(row(END, "", out, score))
    return pd.DataFrame(rows)
