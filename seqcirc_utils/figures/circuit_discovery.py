"""How the findings on the circuit look."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from seqcirc_utils.chapters.circuit_discovery import RANKED, SWEEP, TWO_SIDED, CircuitDiscovery
from seqcirc_utils.circuits.circuit import Circuit
from seqcirc_utils.components import Component
from seqcirc_utils.figures import common, forms
from seqcirc_utils.figures.style import ANSWER, LAST, NEUTRAL, OKABE_ITO, closed, in_short, many
from seqcirc_utils.statistics import short

SIGNIFICANT = 0.05
"""A component is needed whose q lies below this."""


def circuits(found: CircuitDiscovery) -> dict[str, Circuit]:
    """The circuits by the names of their searches."""
    return {SWEEP: found.published, RANKED: found.circuit, TWO_SIDED: found.two_sided}


@forms.two_forms
def search_paths(found: CircuitDiscovery) -> Figure:
    """How the searches shrink a circuit: components left and score kept, trial by trial."""
    figure, axes = forms.subplots(1, 2, size=(9, 3.2), phone=5)
    for name, colour in zip(circuits(found), OKABE_ITO, strict=False):
        trials = found.steps[found.steps["search"] == name]
        left = len(found.estimates) - (trials["size"] * trials["removed"]).cumsum()
        score = 100 * trials["score"].where(trials["removed"]).ffill().fillna(1)
        axes[0].plot(np.arange(1, len(trials) + 1), left, color=colour, label=name)
        axes[1].plot(left, score, color=colour)
    axes[0].set(xlabel="trials (circuits evaluated)", ylabel="components left", ylim=(0, None))
    axes[0].legend()
    axes[1].set(xlabel="components left", ylabel="logit difference kept (%)")
    axes[1].invert_xaxis()
    return closed(figure)


def _with_interval(score: Mapping[str, float], style: str = ".0%") -> str:
    return f"{score['mean']:z{style}} ({score['low']:z{style}} to {score['high']:z{style}})"


def search_table(found: CircuitDiscovery) -> pd.DataFrame:
    """A column per search: what it took, and how good its circuit is."""
    return pd.DataFrame(
        {
            name: {
                "heads, MLPs": f"{len(circuit.heads)}, {len(circuit.mlps)}",
                "trials": found.trials[name],
                "kept on discovery prompts": f"{found.scores[name]:.1%}",
                "kept on evaluation prompts": _with_interval(scores["faithfulness"]),
                "the same, if starts were drawn": (
                    _with_interval(scores["by_start"]) if "by_start" in scores else "one start"
                ),
                "|whole − kept|, prompt by prompt": _with_interval(scores["distance"]),
                "KL to the whole model (nats)": _with_interval(scores["kl"], ".2f"),
                "accuracy": _with_interval(scores["accuracy"]),
                "left when the circuit is ablated": _with_interval(scores["completeness"]),
            }
            for name, circuit in circuits(found).items()
            for scores in [found.quality[name]]
        }
    )


def searches_told(found: CircuitDiscovery) -> Markdown:
    """What each search took and kept, and how much of it is in common."""
    published, ours, bounded = (circuit.components for circuit in circuits(found).values())
    return Markdown(
        f"On {found.n_searched} prompts the ranked search needs {found.trials[RANKED]} trials and "
        f"the published sweep {found.trials[SWEEP]}. The ranked search keeps {len(ours)} "
        f"components, the sweep {len(published)}; {len(published & ours)} are in both. The "
        f"two-sided rule keeps {len(bounded)}, {len(bounded & ours)} of them in common with the "
        f"ranked search. The whole model answers {found.accuracy:.0%} of the evaluation prompts "
        "correctly. Every search holds to the threshold. Where they end in different circuits, "
        "the task has no single circuit: many sets suffice."
    )


def estimate_scatter(found: CircuitDiscovery) -> Figure:
    """Exact against estimated effect of ablating each component."""
    exact, estimate = found.estimates["exact"], found.estimates["estimate"]
    labels = ("exact effect of mean ablation", "estimate from one gradient")
    return common.agreement(exact, estimate, found.estimates["component"], labels)


def estimate_told(found: CircuitDiscovery) -> Markdown:
    """How good the estimate is."""
    top = max(1, len(found.components) // 2)
    return Markdown(
        f"Spearman correlation **{found.spearman:.2f}**; of the {top} components whose ablation "
        f"costs most, the estimate names {found.recall:.0%}. The searches use it only to "
        "choose what to try: every removal is checked exactly."
    )


def circuit_map(found: CircuitDiscovery) -> Figure:
    """The circuit in the model: a cell per component."""
    shape = common.shape(map(Component.parse, found.estimates["component"]))
    return common.circuit_map({found.circuit.task: found.circuit.components}, *shape)


@forms.two_forms
def size_curve(found: CircuitDiscovery) -> Figure:
    """Faithfulness against circuit size, with the circuits found and random ones of one size."""
    curve, threshold = found.curve, found.circuit.threshold
    figure, (axis,) = forms.subplots(size=(7.5, 3.8), phone=4.2)
    axis.plot(curve["size"], curve["faithfulness"], ".-", color=ANSWER, label="by ranking")
    axis.axhline(threshold, color=NEUTRAL, ls="--", lw=0.8, label=f"threshold {threshold:.0%}")
    axis.axhline(1, color=NEUTRAL, lw=0.5)
    for (label, circuit), marker in zip(circuits(found).items(), "osD", strict=True):
        at = len(circuit.components), circuit.faithfulness["mean"]
        axis.plot(*at, marker, color="black", ms=7, mfc="none", mew=1.5, label=label)
    kinds = zip(found.random.items(), ((LAST, "x"), ("#009E73", "+")), strict=True)
    for i, ((label, scores), (colour, marker)) in enumerate(kinds, 1):
        x = len(found.components) + i * 0.025 * curve["size"].max()
        axis.plot([x] * len(scores), scores, marker, color=colour, ms=4, alpha=0.7, label=label)
    axis.set(xlabel="components kept", ylabel="faithfulness (1 = whole model)")
    if forms.for_phone():
        figure.legend(fontsize=8, loc="outside lower center")
    else:
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return closed(figure)


def chance_told(found: CircuitDiscovery) -> Markdown:
    """The areas of the curve, and what the best random circuits keep."""
    few, every = found.n_random, found.circuit.n_prompts
    some = (
        f"Random circuits are scored on the first {few} of {every} prompts, where the ranked "
        f"circuit keeps {found.beside_random:.0%}. "
    )
    return Markdown(
        f"The area below the curve is **{found.cpr:.2f}**; the area between the curve and 1 is "
        f"**{found.cmd:.2f}**. "
        + (some if few < every else "")
        + " ".join(
            f"The best of {many(len(scores), 'circuit')} of the kind "
            f"*{kind}* keeps {max(scores):.0%} (p = {short(found.p[kind])}; with this many draws "
            f"p cannot fall below {short(1 / (len(scores) + 1))})."
            for kind, scores in found.random.items()
        )
    )


@forms.two_forms
def needed_and_found(found: CircuitDiscovery) -> Figure:
    """What each component of the circuit contributes, and how often it is found again."""
    table = found.components[::-1]
    y = np.arange(len(table))
    height = 0.2 * len(table) + 1.3
    figure, axes = forms.subplots(
        1, 2, size=(7.5, height), phone=height, stack=False, layout=None, sharey=True,
        width_ratios=[3, forms.either(1, 1.8)],
    )  # fmt: skip
    mlp = table["component"].str.startswith("mlp").to_numpy()
    colours = np.where(mlp, "#E69F00", "#0072B2")
    sure = table["q"].to_numpy() < SIGNIFICANT
    bars = axes[0].barh(y, 100 * table["change"], color=np.where(sure, colours, "white"))
    for bar, colour in zip(bars, colours, strict=True):
        bar.set_edgecolor(colour)
    axes[0].set_yticks(y, table["component"], fontsize=8)
    axes[0].axvline(0, color="black", lw=0.8)
    axes[0].set(
        xlabel=forms.wrapped("change when removed (points)", 16), ylim=(-0.7, len(table) - 0.3)
    )
    handles = [Patch(color="#0072B2", label="head"), Patch(color="#E69F00", label="MLP")]
    handles.append(Patch(fc="white", ec=NEUTRAL, label="not significant (q ≥ 0.05)"))
    for kind, label, marker, shift in (
        ("prompts", "found with resampled prompts", "o", 0.25),
        ("seed", "found with another seed", "^", 0),
        ("order", "found in another order", "s", -0.25),
    ):
        style = {"marker": marker, "color": "black", "ms": 3.5, "ls": "", "label": label}
        style |= {"mfc": "white"} if kind == "order" else {}
        handles += axes[1].plot(table[kind], y + shift, **style)
    axes[1].set(xlabel=forms.wrapped("found again (share)", 12), xlim=(-0.08, 1.08))
    axes[1].grid(axis="y", lw=0.3)
    ncols = forms.either(3, 1)
    figure.legend(
        handles=handles, ncols=ncols, loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=8
    )
    figure.tight_layout()
    return closed(figure)


def needed_told(found: CircuitDiscovery) -> Markdown:
    """How many components are needed, and how often they are found again."""
    table = found.components
    shares = table[["inclusion", "prompts", "seed", "order"]].mean()
    every, prompts, seed, order = ("–" if np.isnan(s) else f"{s:.0%}" for s in shares)
    n = found.circuit.n_prompts
    return Markdown(
        f"On unseen prompts **{(table['q'] < SIGNIFICANT).sum()} of {len(table)}** components are "
        f"significantly needed (q < {SIGNIFICANT}); with {n} prompts no test can give less than "
        f"p = {short(0.5**n)}. A component of the circuit is found again in {every} of the "
        f"repeated searches on average: {prompts} with resampled prompts, {seed} with other "
        f"seeds, {order} in other orders. Of the circuit's components "
        f"{(table['inclusion'] == 1).sum()} return in every search; of the others "
        f"{len(found.returning)} turn up in at least half of the searches. Trust what always "
        "returns; for what comes and goes, other components can stand in."
    )


def ablation_map(found: CircuitDiscovery) -> Figure:
    """Faithfulness of the circuits by kind of ablation."""
    kinds = found.by_ablation["ablation"].unique()
    grid = found.by_ablation.pivot(index="circuit", columns="ablation", values="mean")[kinds]
    return common.table_heatmap(grid * 100, "faithfulness (%)", ".0f", limit=150)


@common.needs("edges")
def edge_table(found: CircuitDiscovery) -> pd.DataFrame:
    """The circuit with all edges, and a column per rule: edges kept, and what these keep."""
    n = len(found.edge_effects)
    columns = {"all edges": (n, found.all_edges, found.circuit.faithfulness["mean"])}
    for rule, kept in found.edges.items():
        scores = found.edge_scores[rule]
        columns[rule] = kept, scores["discovery"], scores["evaluation"]
    return pd.DataFrame(
        {
            name: {
                "edges kept": f"{kept} of {n}",
                "kept together, discovery prompts": f"{discovery:.0%}",
                "kept together, evaluation prompts": f"{evaluation:.0%}",
            }
            for name, (kept, discovery, evaluation) in columns.items()
        }
    )


@common.needs("calls")
def calls_table(found: CircuitDiscovery) -> pd.DataFrame:
    """The published sweep's closest calls, and the circuit at its end, with shifted means too."""
    shares = {name: found.calls[name].map("{:.2%}".format) for name in ("meant", "released")}
    differs = np.where(found.calls["differs"], "yes", "")
    table = found.calls.assign(**shares, differs=differs).set_index("phase")
    return table.rename(columns={"component": "without", "differs": "decided otherwise"})


@common.needs("calls")
def calls_told(found: CircuitDiscovery) -> Markdown:
    """What the shift of means changes."""
    calls, end = found.calls[:-1], found.calls.iloc[-1]
    shift = 100 * (found.calls["released"] - found.calls["meant"]).abs().max()
    return Markdown(
        f"Of the {len(calls)} closest calls of the published sweep, {calls['differs'].sum()} are "
        f"decided otherwise with means taken as the released code takes them. Scores move by up "
        f"to {shift:.1f} points. The circuit found keeps {end['meant']:.1%} as meant and "
        f"{end['released']:.1%} as released."
    )


@common.needs("released edges")
def fault_table(found: CircuitDiscovery) -> pd.DataFrame:
    """How often each piece of the released edge step judges an edge differently."""
    return found.faults.set_index("edges")


@common.needs("edges")
def strongest_edges(found: CircuitDiscovery, n: int = 12) -> pd.DataFrame:
    """The edges whose cut costs the circuit most, run exactly."""
    exact = found.edge_effects[found.edge_effects["exact"]]
    table = exact.assign(change=exact["score"] - found.all_edges).sort_values("change").head(n)
    table["change"] = table["change"].map("{:+.0%}".format)
    return table[["edge", "change"]].set_index("edge")


def numbers(found: CircuitDiscovery) -> dict[str, str]:
    """Numbers that the book's text shows, by their names there."""
    task, heads, mlps = found.circuit.task, found.circuit.heads, found.circuit.mlps
    return {f"{task}-circuit-heads": str(len(heads)), f"{task}-circuit-mlps": str(len(mlps))}


def headline(found: CircuitDiscovery) -> Markdown:
    """The chapter's finding in a sentence or two."""
    layered = found.p["random heads, same layers"]
    return in_short(
        f"{many(len(found.circuit.heads), 'head')} and {many(len(found.circuit.mlps), 'MLP')} keep "
        f"{_with_interval(found.circuit.faithfulness)} of the lead of the answer on unseen prompts "
        f"(p = {short(layered)} against random heads of the same layers). They answer "
        f"{found.quality[RANKED]['accuracy']['mean']:.0%} of these prompts correctly, the "
        f"whole model {found.accuracy:.0%}."
    )
