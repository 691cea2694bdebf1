"""How an edge circuit is found: the published step, and a ranked search.

Both begin with a node circuit and cut edges of it while the circuit keeps its score.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from seqcirc_utils.ablation.edges import EdgeEvaluator, EdgePruning
from seqcirc_utils.circuits.search import Log, Search, remove_in_groups
from seqcirc_utils.components import Edge
from seqcirc_utils.errors import UserError
from seqcirc_utils.statistics import positive_baseline


@dataclass
class EdgeCircuit:
    """What an edge search found.

    Attributes:
        edges: The kept edges.
        score: Share of the whole model's mean logit difference that they keep together, on the
            prompts they were found with.
        table: One row per edge (:func:`published`) or per trial (:func:`ranked`).
        minimal: Whether each edge was found to be needed, alone, in this very circuit.
    """

    edges: set[Edge]
    score: float
    table: pd.DataFrame = field(repr=False)
    minimal: bool = False


def single_effects(
    circuit: EdgeEvaluator,
    cuts: Mapping[Edge, Iterable[Edge]] | None = None,
    *,
    screen: float = 0.002,
    checkpoint: Path | None = None,
    progress: str | None = None,
) -> pd.DataFrame:
    """The score of a node circuit without each single edge (path patching within the circuit).

    Args:
        circuit: The evaluator of edge circuits.
        cuts: What to cut for each edge; the edge itself by default.
        screen: Edges whose estimated effect is smaller than this share of the whole model's score
            are not run, to save most of the time: their score is the estimate. 0 runs all.
        checkpoint: File that an interrupted run continues from.
        progress: Label of a progress bar.

    Returns:
        One row per edge: ``edge``, ``sender``, ``receiver``, ``input``, ``score`` (share of the
        whole model's mean logit difference without it), ``estimate`` (of the same), ``exact``.

    Raises:
        UserError: for a whole model whose mean logit difference is not positive.
    """
    whole = positive_baseline(circuit.evaluator.intact.logit_diff, "the whole model")
    cuts = {e: [e] for e in circuit.edges} if cuts is None else cuts
    own, slopes = circuit.score.mean().item(), circuit.estimate()
    estimates = {e: sum(slopes[c] for c in cut) / whole for e, cut in cuts.items()}
    # Estimates of one reader's edges add up; those of a chain of edges do not.
    wide = {e for e, cut in cuts.items() if len({c[1:] for c in cut}) > 1}
    exact = [e for e in cuts if e in wide or abs(estimates[e]) >= screen]
    names = [f"{e}:{' '.join(sorted(map(str, cut)))}" for e, cut in cuts.items()]
    log = Log(checkpoint, circuit.evaluator, "single", [str(n) for n in circuit.nodes], names)
    scores = log.read().get("scores", {})
    bar = tqdm(total=len(exact), desc=progress, unit="edge", disable=progress is None)
    with bar:
        for reader in dict.fromkeys(e[1:] for e in exact):
            group = [e for e in exact if e[1:] == reader]
            left = [e for e in group if str(e) not in scores]
            found = circuit.without([cuts[e] for e in left]).mean(1) / whole if left else []
            scores |= {str(e): float(score) for e, score in zip(left, found, strict=True)}
            if left:
                log.write(scores=scores)
            bar.update(len(group))
    rows = [
        {
            "edge": str(e),
            "sender": str(e.sender),
            "receiver": "logits" if e.receiver is None else str(e.receiver),
            "input": e.source,
            "score": scores.get(str(e), own / whole + estimates[e]),
            "estimate": own / whole + estimates[e],
            "exact": str(e) in scores,
        }
        for e in cuts
    ]
    columns = ["edge", "sender", "receiver", "input", "score", "estimate", "exact"]
    return pd.DataFrame(rows, columns=columns)


def published(
    circuit: EdgeEvaluator,
    threshold: float = 0.8,
    *,
    margin: float | None = None,
    effects: pd.DataFrame | None = None,
    progress: str | None = None,
) -> EdgeCircuit:
    """The published edge step as intended: each edge of the node circuit is cut alone.

    An edge stays if the score without it is under ``threshold`` of the *whole* model's. A circuit
    that was pruned to the same threshold lies a hair above it, so that the rule keeps what costs
    about a point (B11); ``margin`` asks for a drop relative to the circuit's own score instead.

    Args:
        circuit: The evaluator of edge circuits.
        threshold: Share of the whole model's mean logit difference, in (0, 1].
        margin: Instead of ``threshold``: an edge stays if it costs more than this share of the
            circuit's own score.
        effects: From :func:`single_effects`, with all edges; computed when ``None``.
        progress: Label of a progress bar.

    Returns:
        The kept edges, their score together, and the effects with a column ``kept``.

    Raises:
        UserError: for a threshold or margin outside (0, 1].
    """
    for name, value in (("threshold", threshold), ("margin", margin)):
        if value is not None and not 0 < value <= 1:
            raise UserError(f"{name} must be in (0, 1], got {value}.")
    whole = positive_baseline(circuit.evaluator.intact.logit_diff, "the whole model")
    effects = single_effects(circuit, progress=progress) if effects is None else effects
    own = circuit.score.mean().item() / whole
    bar = threshold if margin is None else (1 - margin) * own
    table = effects.assign(kept=effects["score"] < bar)
    kept = {Edge.parse(name) for name in table.loc[table["kept"], "edge"]}
    score = circuit.differences([kept]).mean().item() / whole
    return EdgeCircuit(kept, score, table)


class _EdgeSearch(Search):
    """A search over edges: same log, same threshold."""

    def __init__(
        self,
        circuit: EdgeEvaluator,
        kind: str,
        threshold: float,
        checkpoint: Path | None,
        progress: str | None,
    ) -> None:
        self.circuit = circuit
        nodes = " ".join(map(str, circuit.nodes))
        super().__init__(
            circuit.evaluator, f"{kind} {nodes}", threshold, False, checkpoint, progress
        )
        self.score = circuit.score.mean().item() / self.whole
        # A circuit that starts lower, on these prompts, must not get worse.
        self.least = min(self.least, self.score)

    def begin(self) -> EdgePruning:
        return EdgePruning(self.circuit, self.out)

    def left(self) -> list[Edge]:
        """What has not been cut."""
        return [edge for edge in self.circuit.edges if edge not in self.out]


def ranked(
    circuit: EdgeEvaluator,
    threshold: float = 0.8,
    *,
    share: float = 0.25,
    rows: int = 8,
    one_by_one: float = float("inf"),
    checkpoint: Path | None = None,
    progress: str | None = None,
) -> EdgeCircuit:
    """Cut groups of edges by an estimate of what that does; at the end, one by one.

    As ``search.ranked``, for edges: at the end each remaining edge was cut alone,
    in the final circuit, and found to be needed.

    Args:
        circuit: The evaluator of edge circuits.
        threshold: Share of the whole model's mean logit difference to keep, in (0, 1] (or what the
            node circuit keeps, where that is less).
        share: Largest group, as a share of what is left.
        rows: Prompts behind each estimate.
        one_by_one: Most trials of single edges. Where the limit ends the search, the result is
            not minimal, and says so.
        checkpoint: File that an interrupted search continues from.
        progress: Label of a progress bar.

    Raises:
        UserError: for a threshold outside (0, 1], a whole model whose mean logit difference is not
            positive, or logits that are not finite.
    """
    search = _EdgeSearch(circuit, "ranked edges", threshold, checkpoint, progress)
    minimal = remove_in_groups(
        search, lambda: circuit.estimate(search.left(), rows), share, one_by_one=one_by_one
    )
    found = search.found()
    return EdgeCircuit(set(search.left()), found.score, found.frame(), minimal=minimal)
