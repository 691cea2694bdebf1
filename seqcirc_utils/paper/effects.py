"""Effects with intervals, and the verdict that they allow on a claim that may carry over.

A claim carries over to a model when each of its effects lies beyond its limit with the whole 95%
interval. Where an interval reaches both sides of a limit, nothing is decided, and how many prompts
would decide it is told instead.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from seqcirc_utils.errors import UserError
from seqcirc_utils.paper.estimates import Estimate
from seqcirc_utils.paper.evidence import NOT_TESTED, Evidence
from seqcirc_utils.statistics import short

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
VERDICTS = (SUPPORTED, CONTRADICTED, UNDECIDED, NOT_TESTED)

FUNCTIONAL = "functional"
"""What a set of components does when it is kept alone, or shares with others."""
CAUSAL = "causal"
"""What changes when components are ablated."""
REPRESENTATIONAL = "representational"
"""Where heads look and what the streams and weights show; nothing is changed."""

MOVED = (0.8, 1.2)
"""What each limit is multiplied by, to see whether a verdict depends on it."""


@dataclass(frozen=True)
class Effect:
    """One effect of a claim, and the limit that it has to lie beyond.

    Attributes:
        label: What it is.
        found: How large it is.
        limit: The limit, in the same unit.
        least: Whether it has to be at least as large as the limit; else at most.
    """

    label: str
    found: Estimate
    limit: float
    least: bool = True

    @property
    def side(self) -> int:
        """1: beyond the limit as claimed, with the whole interval; -1: short of it; 0: neither."""
        sign = 1 if self.least else -1
        ends = sorted((sign * (self.found.low - self.limit), sign * (self.found.high - self.limit)))
        return 1 if ends[0] >= 0 else -1 if ends[1] < 0 else 0

    @property
    def needed(self) -> float:
        """Prompts at which an interval narrower by the root of their number would decide.

        Without end where it is not one over prompts.
        """
        if self.side or not self.found.n:
            return self.found.n if self.side else math.inf
        gap = abs(self.found.value - self.limit)
        below = self.found.value < self.limit
        half = (
            (self.found.high - self.found.value) if below else (self.found.value - self.found.low)
        )
        return math.ceil(self.found.n * (half / gap) ** 2) if gap else math.inf

    def __str__(self) -> str:
        """As ``label: 12.3 [10.1, 14.2] ≥ 10``."""
        error = self.found.n > 0 or self.found.low != self.found.high
        bounds = f" [{_short(self.found.low)}, {_short(self.found.high)}]" if error else ""
        sign = "≥" if self.least else "≤"
        return f"{self.label}: {_short(self.found.value)}{bounds} {sign} {_short(self.limit)}"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 or float(value).is_integer() else short(value)


@dataclass(frozen=True)
class Carried:
    """The model-free statement of a claim, and how it is judged.

    Attributes:
        text: The statement with its limits.
        kind: The kind of evidence.
        null: What the effects are held against.
        effects: Reads results and gives the effects, with the limits as keywords.
    """

    text: str
    kind: str
    null: str
    effects: partial[Sequence[Effect]]

    @property
    def limits(self) -> Mapping[str, float]:
        """The limits, by name."""
        return self.effects.keywords


CARRIED: dict[str, Carried] = {}
"""Claim to its model-free statement, of all modules that were imported."""


def carries(
    claim: str, kind: str, text: str, *, null: str, **limits: float
) -> Callable[[Callable], Callable]:
    """Register a function that finds a claim's effects; it gets the limits that the text states."""

    def register(effects: Callable) -> Callable:
        CARRIED[claim] = Carried(text.format(**limits), kind, null, partial(effects, **limits))
        return effects

    return register


def verdict(effects: Sequence[Effect]) -> str:
    """All effects beyond their limits, one of them short of it, or neither.

    Raises:
        UserError: for an effect that is not a number, of which neither could be said.
    """
    for effect in effects:
        if math.isnan(effect.found.value + effect.found.low + effect.found.high):
            raise UserError(f"what was measured of “{effect.label}” is not a number.")
    sides = [effect.side for effect in effects]
    if min(sides) > 0:
        return SUPPORTED
    return CONTRADICTED if min(sides) < 0 else UNDECIDED


@dataclass(frozen=True)
class Judged:
    """A verdict on whether a claim carries over.

    Attributes:
        verdict: One of :data:`VERDICTS`.
        effects: What it rests on; none where it is not testable.
        flips: Moved limit to the verdict that it would have given instead.
        reason: Why it cannot be tested, or which effects decided and how many prompts it takes.
        needed: Prompts that would decide it; NaN where it is decided, or where no number would.
    """

    verdict: str
    effects: Sequence[Effect] = ()
    flips: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    needed: float = math.nan


def about(n: float) -> str:
    """A number of prompts that is an estimate, with two digits that count."""
    return f"about {float(f'{n:.2g}'):,.0f}"


def judge(claim: str, evidence: Evidence) -> Judged:
    """Judge whether a claim carries over, and whether that depends on a limit."""
    carried = CARRIED[claim]
    try:
        effects = carried.effects(evidence)
        found = verdict(effects)
    except UserError as error:
        return Judged(NOT_TESTED, reason=str(error))
    flips = {}
    for name, limit in carried.limits.items():
        for factor in MOVED:
            moved = verdict(carried.effects(evidence, **{name: limit * factor}))
            if moved != found:
                flips[f"{name} = {limit * factor:g}"] = moved
    enough = _enough([effect for effect in effects if not effect.side])
    needed = enough if found == UNDECIDED and math.isfinite(enough) else math.nan
    return Judged(found, effects, flips, _reason(found, effects, needed), needed)


def _enough(undecided: Sequence[Effect]) -> float:
    """Prompts at which these decide: one that falls short is enough, else it takes all."""
    short = [e.needed for e in undecided if (e.found.value < e.limit) == e.least]
    return min(short) if short else max((e.needed for e in undecided), default=math.nan)


def _reason(found: str, effects: Sequence[Effect], needed: float) -> str:
    if found == SUPPORTED:
        return ""
    wanted = -1 if found == CONTRADICTED else 0
    said = "; ".join(effect.label for effect in effects if effect.side == wanted)
    if found == CONTRADICTED:
        return f"short of the limit: {said}"
    enough = "no number" if math.isnan(needed) else f"{about(needed)} prompts or questions"
    return f"on both sides of the limit: {said}; {enough} would decide"
