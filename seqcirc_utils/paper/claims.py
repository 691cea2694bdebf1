"""The paper's claims, each judged twice: as published, and whether it carries over.

*As published* a claim is a sentence about one model and its numbers. A rule of its own tests it on
that model, and on no other: there it stays open. What *carries over* is a statement without names
and numbers of a model, judged by effects with intervals. What was published stands in
``published.json`` with its sources.
"""

from collections.abc import Sequence

import pandas as pd

from seqcirc_utils.errors import UserError
from seqcirc_utils.paper import (  # noqa: F401 (all rules)
    carried_circuits,
    carried_roles,
    circuit_rules,
    effects,
    probe_rules,
    role_rules,
)
from seqcirc_utils.paper.evidence import NOT_TESTED, Evidence, published
from seqcirc_utils.paper.rules import RULES, Figures
from seqcirc_utils.statistics import short

OPEN = "open"
"""As published: nobody has run the model that the claim is about, as far as these results go."""
COLUMNS = ("claim", "topic", "model", "statement", "rule", "published", "here", "reproduced")
COLUMNS += ("as_published", "published_reason", "carried", "kind", "null", "effects", "verdict")
COLUMNS += ("reason", "needed", "flips", "read")


def judge(claim: str, evidence: Evidence) -> tuple[str, Figures, str]:
    """Apply one claim's rule: verdict, figures, and the reason."""
    try:
        found = RULES[claim].judge(evidence)
    except UserError as error:
        return NOT_TESTED, {}, str(error)
    failed = [part for part, holds in found.parts.items() if not holds]
    said = [f"does not hold: {', '.join(failed)}"] if failed else []
    return found.verdict, found.figures, "; ".join([*said, *([found.note] if found.note else [])])


def claims_table(evidence: Evidence, gpt2: Evidence | None = None) -> pd.DataFrame:
    """All claims, judged.

    Args:
        evidence: Results of the model in question.
        gpt2: Results of GPT-2, when there are any: they fill ``reproduced``.

    Returns:
        A row per claim, in order: ``claim``, ``topic``, ``model`` (that it was published of),
        ``statement``, ``rule``, ``published`` figures, those found ``here``, those of GPT-2
        ``reproduced`` with their difference to the published ones, the verdict ``as_published``
        with its ``published_reason``; what is ``carried`` over, the ``kind`` of evidence, the
        ``null``, the ``effects``, the ``verdict``, its ``reason``, the prompts that are
        ``needed`` to decide it, and the ``flips``: other verdicts with a limit moved by a fifth;
        and the runs whose results it ``read``.
    """
    rows = []
    for claim in published()["claims"]:
        name, about = claim["id"], claim["model"]
        letter, figures, why = judge(name, evidence)
        if not (evidence.named and about.startswith("GPT-2")):
            letter, why = OPEN, f"it is about {about}, and this is another model."
        again = judge(name, gpt2)[1] if gpt2 else {}
        again = {k: v for k, v in again.items() if k in claim["figures"]}
        evidence.read.clear()
        carried, found = effects.CARRIED[name], effects.judge(name, evidence)
        rows.append(
            {
                "claim": name,
                **{key: claim[key] for key in ("topic", "model", "statement")},
                "rule": RULES[name].text,
                "published": in_words(claim["figures"]),
                "here": in_words(figures),
                "reproduced": in_words(again, claim["figures"]),
                "as_published": letter,
                "published_reason": why,
                **{"carried": carried.text, "kind": carried.kind, "null": carried.null},
                "effects": "; ".join(map(str, found.effects)),
                "verdict": found.verdict,
                "reason": found.reason,
                "needed": found.needed,
                "flips": "; ".join(f"{limit}: {v}" for limit, v in found.flips.items()),
                "read": "; ".join(sorted(evidence.read)),
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def in_words(figures: Figures, against: Figures | None = None) -> str:
    """Figures as text, ``label: 1.0 / 2.0 / 3.0; …``, with differences to others in brackets."""
    said = []
    for label, value in figures.items():
        values = list(value) if isinstance(value, Sequence) else [value]
        other = against[label] if against else None
        others = list(other) if isinstance(other, Sequence) else [other] * len(values)
        both = [_number(v, o) for v, o in zip(values, others, strict=True)]
        said.append(f"{label}: {' / '.join(both)}")
    return "; ".join(said)


def _number(value: float | None, other: float | None = None) -> str:
    if value is None:
        return "–"
    whole = float(value).is_integer()
    text = f"{value:.0f}" if whole else short(value) if abs(value) < 0.1 else f"{value:.1f}"
    return text if other is None else f"{text} ({value - other:+.1f})"
