"""What the faults of the released code change: in the node search (B34), and edge by edge."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from seqcirc_utils.ablation import released_edges as pieces
from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.pruning import Pruning
from seqcirc_utils.ablation.released import shifted_means
from seqcirc_utils.ablation.released_edges import ReleasedEdges
from seqcirc_utils.ablation.replay import Run
from seqcirc_utils.circuits.search import Discovery, sweep
from seqcirc_utils.components import Component, Edge
from seqcirc_utils.statistics import positive_baseline

COLUMNS = {
    "edges": str,
    "candidates": int,
    "kept as meant": int,
    "kept by the code": int,
    "judged differently": int,
}

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
    screen: float = 0.005,
) -> pd.DataFrame:
    """Edges that the published rule keeps, with each piece of the released step alone and with all.

    Args:
        evaluator: Prompts and the whole model's means.
        nodes: The node circuit.
        corrupted: The run of corrupted prompts, as many as there are prompts.
        threshold: An edge stays if the score without it is a smaller share of the whole model's
            (or of what the circuit keeps, where that is less).
        screen: Cuts of a smaller estimated effect, as a share, are estimated.

    Returns:
        A row per piece, and one with all of them and the shifted means of MLPs (B34). Columns as
        in :data:`COLUMNS`: the ``candidates`` among the edges as meant, and how many are kept.

    Raises:
        UserError: as :class:`~seqcirc_utils.ablation.released_edges.ReleasedEdges` does.
    """
    nodes = list(nodes)
    whole = positive_baseline(evaluator.intact.logit_diff, "the whole model")

    def kept(on: Evaluator, which: Iterable[str], about: Callable[[Edge], bool]) -> set[Edge]:
        circuit = ReleasedEdges(on, nodes, corrupted, which)
        bar = min(threshold, circuit.score.mean().item() / whole)
        edges = [e for e in circuit.edges if about(e)]
        if not edges:
            return set()
        scores = circuit.without(edges, screen * whole) / whole
        return {e for e, score in zip(edges, scores.tolist(), strict=True) if score < bar}

    everything = ReleasedEdges(evaluator, nodes, corrupted, ()).edges
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


def shifting_means(
    evaluator: Evaluator,
    corrupted: Run,
    threshold: float = 0.8,
    *,
    checkpoint: Callable[[str], Path | None] = lambda suffix: None,
    progress: str | None = None,
) -> dict[str, Any]:
    """The published sweep with and without the shift of means in the released code (B34).

    Args:
        evaluator: Discovery prompts, and the means of ``corrupted``.
        corrupted: The run of the corrupted prompts behind the means.
        threshold: Share of the whole model's mean logit difference to keep, in (0, 1].
        checkpoint: Gives the file of a search, by the end of its name.
        progress: Label of the progress bars.

    Returns:
        ``prompts`` and ``corrupted`` prompts; the sizes ``meant`` and ``released`` of the circuits
        found and how many components ``both`` have; ``shift``, the largest change of a score (share
        of the whole model's) that the shift makes to a circuit on the released search's way.

    Raises:
        UserError: as :func:`~seqcirc_utils.circuits.search.sweep` does.
    """
    found: dict[str, Discovery] = {}
    for name, run in (("meant", None), ("released", corrupted)):
        file = checkpoint(f"means.{name}.json")
        label = progress and f"{progress}, {name}"
        found[name] = sweep(evaluator, threshold, corrupted=run, checkpoint=file, progress=label)
    whole = positive_baseline(evaluator.intact.logit_diff, "the whole model")
    plain, shift = Pruning(evaluator), 0.0
    for step in found["released"].steps:
        if step["removed"]:
            score = plain.try_without([Component.parse(step["component"])]).mean().item() / whole
            plain.accept()
            shift = max(shift, abs(step["score"] - score))
    meant, released = (found[name].components for name in ("meant", "released"))
    return {
        "prompts": len(evaluator.prompts),
        "corrupted": corrupted.residual.shape[1],
        "meant": len(meant),
        "released": len(released),
        "both": len(meant & released),
        "shift": shift,
    }
