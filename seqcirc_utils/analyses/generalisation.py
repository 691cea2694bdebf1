"""Beyond the paper's tasks: probes of related abilities, and what losing a circuit's heads costs.

A probe is a set of questions with one answer each (paper, section on Llama-2; claims C23 to C26):
other intervals, falling sequences, other languages, arithmetic, word problems. An answer may have
several tokens. It is scored by teacher forcing, in one pass: correct when every token of it is the
top token and what follows would not carry the word or number on (``1`` is not an answer of 12).
Questions of one token length make a batch; nothing is padded.

Only heads are ablated here, at all positions, as published for Llama-2; every MLP stays.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from seqcirc_utils.ablation.answers import Answers, Bench, answered
from seqcirc_utils.circuits.chance import matched
from seqcirc_utils.components import Component
from seqcirc_utils.errors import UserError
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.probes import Probe
from seqcirc_utils.prompts.questions import Fitted, fit
from seqcirc_utils.statistics import Interval, Tail, interval, rate

MIN_ACCURACY = 0.25
"""With less than this there is too little to lose."""
SUBJECTS: dict[str, tuple[str, ...]] = {
    "other steps": tuple(f"plus_{n}" for n in (1, 2, 3, 10, 100)),
    "sums and differences": tuple(f"{n}_{d}" for n in ("sum", "difference") for d in (1, 2)),
    "months and dates in words": ("month_after", "months_passing", "date_after", "dates_passing"),
    "Spanish": ("spanish_number_words", "spanish_months"),
}
"""What the paper ablated circuits on, beyond its tasks: the probes of each planned test."""


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


@dataclass(frozen=True)
class Ablated:
    """A probe's questions without one set of heads, and without random sets like it.

    Attributes:
        probe: The probe.
        kind: Of ablation.
        name: The set's.
        n_heads: How many heads it has.
        before: Answers of the whole model ``[n]``.
        own: Answers without the set ``[n]``.
        random: Answers without each random set ``[draw, n]``; no draw where none was asked for.
    """

    probe: Probe
    kind: str
    name: str
    n_heads: int
    before: Answers
    own: Answers
    random: Answers

    def row(self) -> dict[str, Any]:
        """This as a row of the table of effects; see the chapter."""
        after, null = rate(self.own.correct), self.random.log_prob.mean(1) - self._level
        change = self.own.log_prob.mean().item() - self._level
        return {
            "probe": self.probe.name,
            "group": self.probe.group,
            "kind": self.kind,
            "set": self.name,
            "n_heads": self.n_heads,
            "n": len(self.own.correct),
            "accuracy_before": self.before.correct.double().mean().item(),
            "accuracy_after": after.mean,
            "low": after.low,
            "high": after.high,
            "retained": _share(self.own.correct[self.before.correct]),
            "random_mean": _share(self.random.correct),
            "log_prob_change": change,
            "random_log_prob_change": _share(null),
            "n_draws": len(null),
            "p": tail.p(-change) if (tail := Tail.of(-null.numpy())) else float("nan"),
        }

    @property
    def _level(self) -> float:
        return self.before.log_prob.mean().item()

    def losses(self) -> tuple[float, np.ndarray]:
        """Mean loss of log probability in nats, without the set, and without each random one."""
        own, null = self.own.log_prob.mean().item(), self.random.log_prob.mean(1).numpy()
        return self._level - own, self._level - null

    def gaps(self) -> torch.Tensor:
        """By question ``[n]``: the share of random sets that leave it right, less the set's."""
        return self.random.correct.double().mean(0) - self.own.correct.double()


def ablated(
    bench: Bench, sets: Mapping[str, Iterable[Component]], *, n_draws: int, seed: int = 0
) -> list[Ablated]:
    """Ask a probe without each set of heads, and without ``n_draws`` matched random sets.

    A head alone is compared with none: it has few others near it, and they are no set.

    Args:
        bench: The probe.
        sets: Heads by name; an empty set is left out.
        n_draws: Random sets for each; 0 for none.
        seed: Draws the random sets; they are the same for every probe.
    """
    found = []
    for name, heads in sets.items():
        heads = frozenset(heads)
        if not heads:
            continue
        draws = matched(bench.model, heads, n_draws, seed) if len(heads) > 1 else []
        answers = bench.ablated([(), heads, *draws])
        before, own, random = (
            Answers(answers.correct[rows], answers.log_prob[rows])
            for rows in (0, 1, slice(2, None))
        )
        kind, probe = bench.kind, bench.fitted.probe
        found.append(Ablated(probe, kind, name, len(heads), before, own, random))
    return found


def _pooled_gap(some: Sequence[Ablated], seed: int) -> Interval:
    """The mean of the questions' gaps, with its 95% interval over questions.

    Resampling gaps that are all alike gives no width, however few they are. Then the width is that
    of the share right without the set (Clopper-Pearson), as random sets leave every question alike.
    """
    gap = interval(torch.cat([each.gaps() for each in some]), seed)
    if gap.low < gap.high:
        return gap
    own = rate(torch.cat([each.own.correct for each in some]))
    return Interval(gap.mean, gap.mean - (own.high - own.mean), gap.mean + (own.mean - own.low))


def planned(found: Iterable[Ablated], seed: int = 0) -> list[dict[str, Any]]:
    """The planned tests: each set that has random ones beside it, on each of the paper's subjects.

    Questions of a subject count alike, whatever their probe. The test is of the loss of log
    probability, averaged over the subject's probes, against that without each random set (the
    ``i``-th is the same for every probe); see :class:`~seqcirc_utils.statistics.Tail`.

    Returns:
        A row per kind of ablation, set and subject: ``accuracy`` and ``random`` (shares right
        after), ``gap`` (random less own) with its 95% interval over questions, ``loss`` and
        ``random_loss`` in nats, ``p``, and ``needed``: the loss that would have had p = .05 over
        the number of rows.
    """
    cells: dict[tuple[str, str, str], list[Ablated]] = {}
    for each in found:
        if len(each.random.correct):
            for subject, names in SUBJECTS.items():
                if each.probe.name in names:
                    cells.setdefault((each.kind, each.name, subject), []).append(each)
    rows = []
    for (kind, name, subject), some in cells.items():
        own, null = zip(*(each.losses() for each in some), strict=True)
        gap = _pooled_gap(some, seed)
        tail = Tail.of(np.mean(null, axis=0))
        rows.append(
            {
                "kind": kind,
                "set": name,
                "subject": subject,
                "n_heads": some[0].n_heads,
                "probes": ", ".join(each.probe.name for each in some),
                "n": sum(len(each.own.correct) for each in some),
                "accuracy": _share(torch.cat([each.own.correct for each in some])),
                "random": _share(torch.cat([each.random.correct for each in some], 1)),
                "gap": gap.mean,
                "gap_low": gap.low,
                "gap_high": gap.high,
                "loss": float(np.mean(own)),
                "random_loss": float(np.mean(null)),
                "n_draws": len(null[0]),
                "p": tail.p(float(np.mean(own))) if tail else float("nan"),
                "needed": tail.needed(0.05 / len(cells)) if tail else float("nan"),
            }
        )
    return rows


def _share(values: Any) -> float:
    values = np.asarray(values, float)
    return float(values.mean()) if values.size else float("nan")
