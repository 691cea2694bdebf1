"""The faults of the published analysis, and the effect of each in the results of the other stages.

The faults stand in ``published.json``. What a measurement needs and does not find makes it ``not
tested here``, with the reason.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pandas as pd

from seqcirc_utils.errors import UserError
from seqcirc_utils.paper.evidence import CIRCUITS, NOT_TESTED, TASKS, Evidence, cell, published
from seqcirc_utils.statistics import short

COLUMNS = ("fault", "area", "what", "effect", "where")

EFFECTS: dict[str, tuple[str, Callable[[Evidence], str]]] = {}
"""Fault to the files that hold its effect and the function that puts it in words."""


def _effect(name: str, where: str) -> Callable[[Callable], Callable]:
    def register(effect: Callable) -> Callable:
        EFFECTS[name] = (where, effect)
        return effect

    return register


def _row(values: Sequence[Any], style: str = "{}") -> str:
    return " / ".join("–" if v is None else style.format(v) for v in values)


def _quality(e: Evidence, measure: str) -> list[float]:
    keys = "quality", "ranked search", measure, "mean"
    return [e.data("04_circuit_discovery.json", *keys, task=t) for t in TASKS]


@_effect("B3", "01_task_construction.json")
def _b3(e: Evidence) -> str:
    keys = ("paper_filter_keeps",), ("n",), ("accuracy", "mean")
    kept, n, right = (
        [e.data("01_task_construction.json", *k, task=t) for t in TASKS] for k in keys
    )
    return (
        f"the published filter would keep {_row(kept)} of {_row(n)} prompts; unfiltered, "
        f"{_row(right, '{:.0%}')} are answered right"
    )


@_effect("B4", "04_circuit_discovery.json")
def _b4(e: Evidence) -> str:
    name, said = "04_circuit_discovery.json", []
    for kind in e.data(name, "random", task=TASKS[0]):
        null = [e.data(name, "random", kind, task=t) for t in TASKS]
        p = [e.data(name, "p", kind, task=t) for t in TASKS]
        best = _row([max(v) for v in null], "{:.0%}")
        shown = _row([None if v is None else short(v) for v in p])
        said.append(f"best of {len(null[0])} ({kind}) {best}, p = {shown}")
    return f"circuits keep {_row(_quality(e, 'faithfulness'), '{:.0%}')}; {'; '.join(said)}"


@_effect(
    "B5",
    "04_circuit_discovery.json, 06_cross_task.csv, 08_prediction_and_editing.prediction.csv",
)
def _b5(e: Evidence) -> str:
    table = e.table("06_cross_task.csv")
    cells = table[(table["mode"] == "kept") & table["set"].isin([f"{t} circuit" for t in TASKS])]
    cells = cells[cells["task"].isin(TASKS)]["mean"]
    name = "08_prediction_and_editing.prediction.csv"
    said = e.table(name)
    key = {"measure": "vocabulary", "subset": "all"}
    same = [cell(said, "agreement", name, task=t, **key) for t in TASKS]
    return (
        f"circuits keep {_row(_quality(e, 'faithfulness'), '{:.0%}')}, but are off by "
        f"{_row(_quality(e, 'distance'), '{:.0%}')} prompt by prompt and by "
        f"{_row(_quality(e, 'kl'), '{:.2f}')} nats, and say what the model says in "
        f"{_row(same, '{:.0%}')} of varied prompts; {int((cells > 1).sum())} of {len(cells)} "
        "transfers exceed 100%"
    )


@_effect(
    "B6",
    "04_circuit_discovery.circuit.json, 04_circuit_discovery.circuit.published.json, "
    "04_circuit_discovery.csv",
)
def _b6(e: Evidence) -> str:
    alike, again = [], []
    for t in TASKS:
        a, b = e.circuit(t).components, e.circuit(t, published=True).components
        alike.append(len(a & b) / len(a | b))
        table = e.table("04_circuit_discovery.csv", t)
        again.append(table["inclusion"].mean())
    return (
        f"two searches with the same threshold agree in {_row(alike, '{:.0%}')} of all components "
        f"that either keeps; when the search is repeated a component returns in "
        f"{_row(again, '{:.0%}')} of the searches"
    )


@_effect("B11", "04_circuit_discovery.json")
def _b11(e: Evidence) -> str:
    keys = "published rule", "corrected rule"
    loose, strict = (
        [e.data("04_circuit_discovery.json", "edges", key, task=t) for t in TASKS] for key in keys
    )
    return (
        f"edges kept at the published threshold: {_row(loose)}; asking for a drop of the circuit's "
        f"own score: {_row(strict)}"
    )


def _misjudged(e: Evidence, fault: str) -> str:
    counts = []
    for t in TASKS:
        table = e.table("04_circuit_discovery.faults.csv", t)
        rows = table[table["edges"].str.contains(fault, regex=False)]
        if rows.empty:
            raise UserError(f"04_circuit_discovery.faults.csv of {t} has no row on {fault}.")
        counts.append(rows.iloc[0])
    different, all_, meant, code = (
        _row([row[key] for row in counts])
        for key in ("judged differently", "candidates", "kept as meant", "kept by the code")
    )
    return (
        f"with this fault alone {different} of {all_} such edges that were tried are judged "
        f"differently, kept {code} instead of {meant}"
    )


for _name in ("B12", "B13"):
    _effect(_name, "04_circuit_discovery.faults.csv")(partial(_misjudged, fault=_name))


@_effect("B34", "04_circuit_discovery.released.csv")
def _b34(e: Evidence) -> str:
    flips, calls, shifts, ends = [], [], [], []
    for t in TASKS:
        table = e.table("04_circuit_discovery.released.csv", t)
        if table.empty:
            raise UserError(f"no call of the sweep on {t} was scored as released.")
        flips.append(int(table["differs"][:-1].sum()))
        calls.append(len(table) - 1)
        shifts.append(100 * (table["released"] - table["meant"]).abs().max())
        ends.append(table.iloc[-1]["released"])
    return (
        f"of the {_row(calls)} closest calls of the sweep {_row(flips)} are decided otherwise; "
        f"scores move by up to {_row(shifts, '{:.1f}')} points, and the circuits found keep "
        f"{_row(ends, '{:.1%}')}"
    )


@_effect("B15", "04_circuit_discovery.circuit.json")
def _b15(e: Evidence) -> str:
    counts = [len(e.circuit(t).edges) for t in TASKS]
    if not all(counts):
        raise UserError("no edges were searched for.")
    return f"edges listed: {_row(counts)}"


@_effect("B16", "05_component_roles.ov.csv")
def _b16(e: Evidence) -> str:
    tops = [e.ov("months", "next", words=w)["top5"] for w in ("members", "ordinals")]
    said = [f"{v.max():.0%} ({v.idxmax()})" for v in tops]
    return f"best next score of months: {said[0]} for months, {said[1]} for ordinals"


@_effect("B17", "05_component_roles.ov.csv")
def _b17(e: Evidence) -> str:
    first, later = [], []
    for t in TASKS:
        table = e.ov(t, "next", "bare sequence")
        places = [c for c in table if c.startswith("place ")]
        if len(places) < 2:
            raise UserError("no scores by place.")
        best = table.loc[table["top5"].idxmax()]
        first.append(best[places[0]])
        later.append(best[places[1:]].mean())
    return (
        "next score of the best head on bare sequences: "
        f"{_row(first, '{:.0%}')} at the first member, {_row(later, '{:.0%}')} at the others"
    )


@_effect("B18", "05_component_roles.ov.csv")
def _b18(e: Evidence) -> str:
    next_, copy = (e.ov("number_words", s)["top5"] for s in ("next", "copy"))
    top = next_.nlargest(10).index
    return (
        f"number words: best next score {next_.max():.0%} ({next_.idxmax()}, copy "
        f"{copy[next_.idxmax()]:.0%}); of the ten best next heads "
        f"{int((copy >= next_)[top].sum())} copy at least as much"
    )


@_effect("B19", "05_component_roles.ov.csv")
def _b19(e: Evidence) -> str:
    rho, differ = [], []
    for t in TASKS:
        own, short = (e.ov(t, "next", read)["top5"] for read in ("own", "after block 0"))
        rho.append(own.corr(short, method="spearman"))
        differ.append(int(((own >= 0.25) != (short >= 0.25)).sum()))
    return (
        f"next scores on both inputs correlate at {_row(rho, '{:.2f}')} (Spearman); heads at or "
        f"above 25% on only one of the two: {_row(differ)}"
    )


@_effect("B20", "02_logit_attribution.npz, 05_component_roles.lens.csv")
def _b20(e: Evidence) -> str:
    exact, loose = zip(*(e.switches(t) for t in TASKS), strict=True)
    text = (
        f"prompts switching at the best block: {_row([v.max() for v in loose], '{:.0%}')} by the "
        f"published rule, {_row([v.max() for v in exact], '{:.0%}')} from last to next"
    )
    tables = [e.table("05_component_roles.lens.csv", t) for t in TASKS]
    mlp = [v.loc[v["part"] == "mlp", "switches"].max() for v in tables]
    return f"{text}; across one MLP and in the whole vocabulary {_row(mlp, '{:.0%}')}"


@_effect("B25", "04_circuit_discovery.circuit.json")
def _b25(e: Evidence) -> str:
    found = [e.circuit(t) for t in TASKS]
    width = [100 * (c.faithfulness["high"] - c.faithfulness["low"]) for c in found]
    return (
        f"with {found[0].n_prompts} prompts the 95% interval of what a circuit keeps is still "
        f"{_row(width, '{:.0f}')} points wide"
    )


@_effect("B26", "04_circuit_discovery.json, 04_circuit_discovery.circuit.published.json")
def _b26(e: Evidence) -> str:
    ends, again = [], []
    for t in TASKS:
        ends.append(e.data("04_circuit_discovery.json", "scores", "published sweep", task=t))
        again.append(e.circuit(t, published=True).faithfulness["mean"])
    return f"sweeps end at {_row(ends, '{:.0%}')}; on unseen prompts {_row(again, '{:.0%}')}"


@_effect("B27", "04_circuit_discovery.ablations.csv, 07_generalisation.csv")
def _b27(e: Evidence) -> str:
    name, kinds = "04_circuit_discovery.ablations.csv", ("mean", "zero", "resample")
    tables = [e.table(name, t) for t in TASKS]
    said = []
    for kind in kinds:
        key = {"circuit": "ranked search", "ablation": kind}
        said.append(f"{kind} {_row([cell(v, 'mean', name, **key) for v in tables], '{:.0%}')}")
    text = f"kept by the same circuits, by ablation: {'; '.join(said)}"
    table = e.table("07_generalisation.csv")
    left = table[table["set"].isin(CIRCUITS)].groupby("kind")["accuracy_after"].mean()
    beyond = ", ".join(f"{v:.0%} ({k})" for k, v in left.items())
    return f"{text}; right beyond the tasks without a circuit's heads: {beyond}"


@_effect("B28", "07_generalisation.csv")
def _b28(e: Evidence) -> str:
    names = e.table("07_generalisation.csv")["probe"].unique()
    rows = e.effects(list(names), CIRCUITS)
    means = rows.groupby("set")[["accuracy_after", "random_mean"]].mean().reindex(CIRCUITS)
    return (
        f"over {len(names)} probes {_row(means['accuracy_after'], '{:.0%}')} stay right without "
        f"the circuits' heads, {_row(means['random_mean'], '{:.0%}')} without as many random ones "
        f"of like layers (up to {rows['n_draws'].max()} draws)"
    )


@_effect("B29", "07_generalisation.probes.csv, 07_generalisation.csv")
def _b29(e: Evidence) -> str:
    probes = e.table("07_generalisation.probes.csv")
    rows = e.effects(probes["probe"].to_list(), [*CIRCUITS, "shared core"])
    left = rows.assign(core=rows["set"] == "shared core").groupby("core")["accuracy_after"].mean()
    core = f"{left[True]:.0%}" if True in left else "– (no head is shared)"
    before = probes[probes["used"].astype(bool)]["accuracy"].mean()
    return (
        f"on probes it can do the intact model has {before:.0%}; of its right answers "
        f"{left.get(False, float('nan')):.0%} survive without a circuit's heads, {core} without "
        "the shared ones"
    )


@_effect("B31", "07_generalisation.probes.csv")
def _b31(e: Evidence) -> str:
    table = e.table("07_generalisation.probes.csv")
    rows = table[table["probe"].str.startswith("spanish")]
    if rows.empty:
        raise UserError("no Spanish probe was asked.")
    return "; ".join(f"{r.probe}: {r.accuracy:.0%} of {r.n} questions" for r in rows.itertuples())


@_effect("B32", "04_circuit_discovery.csv, 05_component_roles.ov.csv")
def _b32(e: Evidence) -> str:
    said = []
    for t in TASKS:
        costs = e.changes(t)
        head = costs[~costs.index.str.startswith("mlp")].idxmin()
        scores = e.ov(t, "next")["top5"]
        rank = int((scores > scores[head]).sum()) + 1
        said.append(f"{head}: {scores[head]:.0%} (rank {rank} of {len(scores)})")
    return f"next score of the head that each circuit needs most: {_row(said)}"


def faults_table(evidence: Evidence) -> pd.DataFrame:
    """The faults of the published analysis with their measured effect.

    Returns:
        A row per fault: ``fault``, ``area``, ``what``, ``effect`` (or ``not tested here: why``)
        and ``where``, the files that hold the figures.
    """
    rows = []
    for fault in published()["faults"]:
        where, measure = EFFECTS.get(fault["id"], ("", None))
        if measure is None:
            effect = f"{NOT_TESTED}: {fault['untested']}"
        else:
            try:
                effect = measure(evidence)
            except UserError as error:
                effect, where = f"{NOT_TESTED}: {error}", ""
        rows.append((fault["id"], fault["area"], fault["fault"], effect, where))
    return pd.DataFrame(rows, columns=COLUMNS)
