"""Rules of claims on what circuits do elsewhere: sequences, sums, word problems, Spanish."""

from collections.abc import Mapping, Sequence

import pandas as pd

from seqcirc_utils.paper.evidence import CIRCUITS, Evidence
from seqcirc_utils.paper.rules import Figure, Figures, Finding, only_elsewhere, rule


def _damage(e: Evidence, probes: Mapping[str, str]) -> tuple[Figures, pd.DataFrame, list[str]]:
    """Accuracy without each circuit's heads and without random ones, by probe (in percent)."""
    rows = e.effects(list(probes), CIRCUITS)
    figures: dict[str, Figure] = {}
    for probe, label in probes.items():
        part = rows[rows["probe"] == probe].set_index("set")
        if len(part):
            after = 100 * part["accuracy_after"].reindex(CIRCUITS)
            figures[label] = [None if pd.isna(v) else float(v) for v in after]
            figures[f"{label}, random"] = 100 * float(part["random_mean"].mean())
    unused = [label for probe, label in probes.items() if label not in figures]
    return figures, rows, unused


@rule(
    "C23",
    "On every number sequence (+1, +2, +3, +10, +100) that the model can do, mean-ablating the "
    "heads of any circuit leaves at most {most:g}% right, ablating as many random heads of like "
    "layers at least {least:g}%.",
    most=10,
    least=50,
)
def _c23(e: Evidence, most: float, least: float) -> Finding:
    only_elsewhere(e)
    probes = {f"plus_{n}": f"+{n}" for n in (1, 2, 3, 10, 100)}
    figures, rows, unused = _damage(e, probes)
    parts = {
        "circuits destroy": bool((100 * rows["accuracy_after"] <= most).all()),
        "random heads do not": bool((100 * rows["random_mean"] >= least).all()),
    }
    return Finding(figures, parts, _unused(unused))


@rule(
    "C24",
    "On every kind of sum or difference that the model can do, mean-ablating the heads of any "
    "circuit leaves at least {gap:g} points less right than ablating as many random heads of like "
    "layers (p ≤ {p}).",
    gap=20,
    p=0.05,
)
def _c24(e: Evidence, gap: float, p: float) -> Finding:
    only_elsewhere(e)
    names = ("sum", "sums"), ("difference", "differences")
    probes = {f"{n}_{d}": f"{t}, {d} digit{'s' * (d > 1)}" for n, t in names for d in (1, 2)}
    figures, rows, unused = _damage(e, probes)
    worse = bool((100 * (rows["random_mean"] - rows["accuracy_after"]) >= gap).all())
    parts = {"worse": worse, "beyond chance": bool((rows["p"] <= p).all())}
    return Finding(figures, parts, _unused(unused))


_THREE = "key heads"


@rule(
    "C25",
    "On every word problem about months or dates that the model can do, mean-ablating the few "
    "key heads together leaves fewer of the right answers than ablating as many random heads of "
    "like layers (p ≤ {p}).",
    p=0.05,
)
def _c25(e: Evidence, p: float) -> Finding:
    only_elsewhere(e)
    groups = {"months": ("month_after", "months_passing"), "dates": ("date_after", "dates_passing")}
    probes = [probe for some in groups.values() for probe in some]
    rows = e.effects(probes, [_THREE])
    figures: dict[str, Figure] = {}
    for label, some in groups.items():
        part = rows[rows["probe"].isin(some)]
        if len(part):
            figures[label] = 100 * float(part["retained"].mean())
            figures[f"{label}, random"] = 100 * float(part["random_mean"].mean())
    worse = bool((rows["retained"] < rows["random_mean"]).all())
    parts = {"worse": worse, "beyond chance": bool((rows["p"] <= p).all())}
    asked = ", ".join(rows["probe"])
    return Finding(figures, parts, f"{rows['n_heads'].iloc[0]} heads, on {asked}")


@rule(
    "C26",
    "On Spanish number words and months, as far as the model can do them, mean-ablating the heads "
    "of any circuit leaves at most {most:g}% right, and fewer than random heads (p ≤ {p}).",
    most=50,
    p=0.05,
)
def _c26(e: Evidence, most: float, p: float) -> Finding:
    only_elsewhere(e)
    probes = {"spanish_number_words": "Spanish number words", "spanish_months": "Spanish months"}
    figures, rows, unused = _damage(e, probes)
    broken = bool((100 * rows["accuracy_after"] <= most).all())
    parts = {"broken": broken, "beyond chance": bool((rows["p"] <= p).all())}
    return Finding(figures, parts, _unused(unused))


def _unused(labels: Sequence[str]) -> str:
    return f"not measured: {', '.join(labels)}" if labels else ""
