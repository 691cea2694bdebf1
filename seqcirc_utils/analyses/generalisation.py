"""Beyond the paper's tasks: probes of related abilities, and what losing a circuit's heads costs.

A probe is a set of questions with one answer each (paper, section on Llama-2; claims C23 to C26):
other intervals, falling sequences, other languages, arithmetic, word problems. An answer may have
several tokens. It is scored by teacher forcing, in one pass: correct when every token of it is the
top token and what follows would not carry the word or number on (``1`` is not an answer of 12).
Questions of one token length make a batch; nothing is padded.

Only heads are ablated here, at all positions, as published for Llama-2; every MLP stays.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from seqcirc_utils.ablation.answers import Answers, Bench, answered
from seqcirc_utils.circuits.chance import matched
from seqcirc_utils.components import Component
from seqcirc_utils.errors import UserError
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.probes import Probe
from seqcirc_utils.prompts.questions import Fitted, fit
from seqcirc_utils.statistics import rate

MIN_ACCURACY = 0.25
"""With less than this there is too little to lose."""


def ability(model: Model, probe: Probe, n: int) -> tuple[dict[str, Any], Fitted | None]:
    """Can the model do it? Its accuracy on ``n`` questions, and whether to go on.

    The rule: the exact 95% interval of the accuracy lies above chance, the accuracy is at least
    :data:`MIN_ACCURACY` (added after a first look), and the answer is on average more probable than
    the wrong one.

    Returns:
        A row of the table of probes (``logit_diff``: log probability of the answer minus that of
        the wrong answer, in nats, which for single tokens is the logit difference; ``reason`` says
        why a probe is not used), and the questions that the model gets right, or ``None``.
    """
    row = {"probe": probe.name, "group": probe.group, "title": probe.title}
    row |= {"example": probe.questions[0].context + " …", "n": 0, "chance": probe.chance}
    row |= dict.fromkeys(("accuracy", "low", "high", "logit_diff"), float("nan"))
    try:
        fitted = fit(model, probe, n)
    except UserError as error:
        return row | {"used": False, "reason": str(error)}, None
    right, wrong = answered(model, fitted.right), answered(model, fitted.wrong)
    share = rate(right.correct[0])
    difference = (right.log_prob - wrong.log_prob).mean().item()
    row |= {"example": f"{fitted.questions[0].context} … {fitted.questions[0].answer.strip()}"}
    row |= {"n": len(fitted), "accuracy": share.mean, "low": share.low, "high": share.high}
    row |= {"logit_diff": difference}
    reason = ""
    if not share.low > probe.chance:
        reason = f"accuracy {share} is not above chance ({probe.chance:.2f})"
    elif share.mean < MIN_ACCURACY:
        reason = f"accuracy {share} leaves too little to lose"
    elif not difference > 0:
        reason = f"the wrong answer is more probable (by {-difference:.2f} nats)"
    able = None if reason else fitted.only(right.correct[0].nonzero().flatten().tolist())
    return row | {"used": not reason, "reason": reason}, able


def effects(
    bench: Bench,
    sets: Mapping[str, Iterable[Component]],
    *,
    n_draws: int,
    n_hits: int = 3,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """What ablating each set of heads does to a probe, beside matched random sets.

    ``p`` is the share of random sets after whose ablation accuracy is as low or lower,
    (hits + 1) / (draws + 1). Drawing stops early at ``n_hits`` hits (Besag and Clifford 1991): by
    then the set is not remarkable, and the p-value stays valid.

    Args:
        bench: The probe.
        sets: Heads by name; an empty set gets no row.
        n_draws: Random sets for each; 0 for none (``p`` and what is random are then NaN).
        n_hits: When to stop drawing.
        seed: Draws the random sets; they are the same for every probe.

    Returns:
        A row per set. ``low``, ``high``: exact 95% interval of ``accuracy_after``; ``retained``: of
        the questions right before, the share right after; log probabilities of the answers in
        nats, mean over questions.
    """
    before = Answers(bench.intact.correct[0], bench.intact.log_prob[0])
    rows = []
    for name, heads in sets.items():
        heads = frozenset(heads)
        if not heads:
            continue
        own = bench.ablated([heads])
        after, log_prob = rate(own.correct[0]), own.log_prob.mean().item()
        draws = matched(bench.model, heads, n_draws, seed)
        null, null_log_prob, hits = np.zeros(0), np.zeros(0), 0
        while len(null) < len(draws) and hits < n_hits:
            scores = bench.ablated(draws[len(null) : len(null) + 5])
            null = np.append(null, scores.correct.double().mean(1))
            null_log_prob = np.append(null_log_prob, scores.log_prob.mean(1))
            hits = int((null <= after.mean + 1e-9).sum())
        rows.append(
            {
                "probe": bench.fitted.probe.name,
                "group": bench.fitted.probe.group,
                "kind": bench.kind,
                "set": name,
                "n_heads": len(heads),
                "n": len(bench.fitted),
                "accuracy_before": before.correct.double().mean().item(),
                "accuracy_after": after.mean,
                "low": after.low,
                "high": after.high,
                "retained": _share(own.correct[0][before.correct]),
                "random_mean": _share(null),
                "log_prob_change": log_prob - before.log_prob.mean().item(),
                "random_log_prob_change": _share(null_log_prob) - before.log_prob.mean().item(),
                "n_draws": len(null),
                "p": (hits + 1) / (len(null) + 1) if n_draws else float("nan"),
            }
        )
    return rows


def _share(values: Any) -> float:
    values = np.asarray(values, float)
    return float(values.mean()) if len(values) else float("nan")


def corrected(p: pd.Series) -> pd.Series:
    """P-values corrected for all tests, after Benjamini and Hochberg; NaN (no test) stays NaN.

    Of the rows with a corrected value below .05, one in twenty is expected to be chance.
    """
    tested = p.dropna()
    return pd.Series(false_discovery_control(tested), tested.index).reindex(p.index)
