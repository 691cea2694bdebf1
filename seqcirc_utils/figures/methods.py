"""How the findings on methods look."""

from collections.abc import Iterable
from textwrap import fill

import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from scipy.stats import spearmanr

from seqcirc_utils.chapters.methods import Methods
from seqcirc_utils.figures import common, forms
from seqcirc_utils.figures.style import NEUTRAL, OKABE_ITO, closed
from seqcirc_utils.methods.registry import METHODS

KINDS = {
    "exact": (("exact ablation", "activation patching"), OKABE_ITO[0], "s"),
    "search": (("published sweep", "ranked search"), OKABE_ITO[1], "D"),
    "gradient": (
        ("attribution patching", "EAP-IG inputs", "EAP-IG activations", "clean-corrupted"),
        *(OKABE_ITO[2], "o"),
    ),
    "relevance": (("RelP",), OKABE_ITO[3], "^"),
    "ensemble": (("ensemble",), OKABE_ITO[4], "P"),
    "random": (("random",), NEUTRAL, "x"),
}
"""Kind of method to its methods, colour and mark."""
NUMBERS = {"text-align": "right"}
"""How numbers stand below one another."""
FEW = 6
"""Resampling fewer prompts than this hardly gives an interval."""


@forms.two_forms
def quality_against_cost(found: Methods) -> Figure:
    """Three measures of quality against forward passes, a mark per method, intervals."""
    rows = found.methods.set_index("method")
    total = len(found.scores)
    panels = {
        "CPR": ("cpr", 1.0, "MIB's CPR (more is better)"),
        "CMD": ("cmd", 1.0, "MIB's CMD (less is better)"),
        "smallest": (
            *("size", 100 / total),
            f"components that keep {found.threshold:.0%} (% of all; less is better)",
        ),
    }
    figure, axes = forms.subplots(3, size=(7.5, 10), phone=11.5)
    named: dict[Axes, list[tuple[float, float, str, str]]] = {axis: [] for axis in axes}
    cheapest = rows["passes"][rows["passes"] > 0].min()
    for axis, (key, scale, label) in zip(axes, panels.values(), strict=True):
        for kind, (names, colour, mark) in KINDS.items():
            for name in (n for n in names if n in rows.index):
                row = rows.loc[name]
                x = max(row["passes"], cheapest / 4)  # random costs nothing: at the left end
                middle, low, high = (scale * row[key + end] for end in ("", "_low", "_high"))
                spread = [[max(0, middle - low)], [max(0, high - middle)]]
                axis.errorbar(
                    *(x, middle, spread),
                    fmt=mark,
                    color=colour,
                    ms=7,
                    lw=1,
                    capsize=2,
                    label=kind if name == names[0] else None,
                )
                named[axis].append((x, middle, name, colour))
        axis.set(xscale="log", xlabel="forward passes (one prompt each; random: none)")
        axis.set_ylabel(fill(label, 30))
        axis.set_xlim(right=rows["passes"].max() * 12)  # room for the names
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=forms.either(6, 2), loc="outside upper center")
    figure.draw_without_rendering()  # before that, no point has a place
    for axis, points in named.items():
        _write_names(axis, points)
    return closed(figure)


def _write_names(axis: Axes, points: Iterable[tuple[float, float, str, str]]) -> None:
    """Name each point beside it, or a line or more above or below where another name stands."""
    line, taken = 8, list[tuple[float, float, float]]()  # points: a line's height; x, y, width
    for x, y, name, colour in sorted(points):
        at = axis.transData.transform((x, y)) * 72 / axis.figure.dpi
        width = 4.2 * len(name)
        steps = [4] + [4 + sign * line * i for i in range(1, 9) for sign in (1, -1)]
        free = (
            up
            for up in steps
            if all(
                abs(at[1] + up - b) >= line or at[0] > a + w or a > at[0] + width
                for a, b, w in taken
            )
        )
        up = next(free, 4)
        taken.append((at[0], at[1] + up, width))
        axis.annotate(name, (x, y), (6, up), textcoords="offset points", fontsize=7, color=colour)


def _ranged(rows: pd.DataFrame, key: str, form: str) -> pd.Series:
    """Means with their intervals, as text."""
    return pd.Series(
        [
            f"{m:z{form}} [{low:z{form}}, {high:z{form}}]"
            for m, low, high in rows[[key, f"{key}_low", f"{key}_high"]].to_numpy()
        ],
        index=rows.index,
    )


def quality_table(found: Methods) -> Styler:
    """Cost, MIB's areas and the smallest circuit of each method; a method that is not here."""
    rows = found.methods.set_index("method")
    shown = pd.DataFrame(
        {
            "passes": rows["passes"].map("{:,.0f}".format),
            "CPU s": [
                f"{s:.1f}" if timed else f"~{s:.0f}"
                for s, timed in zip(rows["seconds"], rows["timed"], strict=True)
            ],
            "CPR": _ranged(rows, "cpr", ".2f"),
            "CMD": _ranged(rows, "cmd", ".2f"),
            "CPR, mean ablation": rows["mean_cpr"].map("{:z.2f}".format),
            "CMD, mean ablation": rows["mean_cmd"].map("{:z.2f}".format),
            f"components that keep {found.threshold:.0%}": _ranged(rows, "size", ".0f"),
            "share they keep": _ranged(rows, "share", ".2f"),
        }
    )
    for name, reason in found.missing.items():
        if name in METHODS:
            shown.loc[name] = ["", "", f"not here: {reason}", *[""] * (shown.shape[1] - 3)]
    return common.styled(shown, "quality")


def agreement_table(found: Methods) -> Styler:
    """Rank correlation and recall against exact effects on prompts that no method has seen."""
    rows = found.methods.set_index("method")
    names = {
        "spearman_heads": "heads: Spearman",
        "recall_heads": "heads: recall",
        "spearman_mlps": "later MLPs: Spearman",
        "recall_mlps": "later MLPs: recall",
        "first_mlp": "first MLP: score over exact",
    }
    shown = rows[list(names)].rename(columns=names)
    return common.styled(shown, "agreement", **NUMBERS).format("{:z.2f}", na_rep="–")


def methods_table() -> HTML:
    """What each method is, and where it is from."""
    rows = {
        "what its score is": {name: method.summary for name, method in METHODS.items()},
        "source": {name: method.source for name, method in METHODS.items()},
    }
    return common.page_table(pd.DataFrame(rows).rename_axis("method").reset_index())


def told(found: Methods) -> Markdown:
    """Who is best, who is as good for less, and what beats random."""
    rows = found.methods.set_index("method")
    others = rows.drop(index="random")
    best, least = others["cpr"].idxmax(), others["cmd"].idxmin()
    by_size = others["size"].idxmin()
    same = others[others["cpr_high"] >= others.loc[best, "cpr_low"]]
    cheap = same["passes"].idxmin()
    below = [n for n in others.index if rows.loc[n, "cmd"] >= rows.loc["random", "cmd_low"]]
    worse = f"No better than random by CMD: {', '.join(below)}. " if below else ""
    few = f" With {found.n_judged} prompts an interval is hardly more than their range."
    few = few if found.n_judged < FEW else ""
    return Markdown(
        f"The methods are judged on {found.n_judged} prompts that none of them has seen. The "
        f"highest CPR is that of **{best}** ({rows.loc[best, 'cpr']:.2f}; random "
        f"{rows.loc['random', 'cpr']:.2f}), the lowest CMD that of **{least}** "
        f"({rows.loc[least, 'cmd']:.2f}; random {rows.loc['random', 'cmd']:.2f}). The smallest "
        f"circuit that keeps {found.threshold:.0%} comes from **{by_size}** "
        f"({rows.loc[by_size, 'size']:.0f} components; random "
        f"{rows.loc['random', 'size']:.0f}). The cheapest method whose interval of CPR reaches the "
        f"best one's is **{cheap}**, with {rows.loc[cheap, 'passes']:,.0f} forward passes against "
        f"{rows.loc[best, 'passes']:,.0f}. {worse}Intervals are over prompts, of one model and one "
        f"draw: methods whose intervals overlap cannot be ranked.{few}"
    )


def best(found: Methods) -> str:
    """The method with the highest CPR."""
    rows = found.methods.set_index("method").drop(index="random")
    return str(rows["cpr"].idxmax())


@forms.two_forms
def curves(found: Methods) -> Figure:
    """MIB's faithfulness by size on its grid, by ablation, components ranked by score."""
    kinds = found.grid["ablation"].unique()
    phone = 2.7 * len(kinds) + 1.6
    figure, axes = forms.subplots(1, len(kinds), size=(11, 4.2), phone=phone, sharey=True)
    for axis, kind in zip(axes, kinds, strict=True):
        some = found.grid[(found.grid["ablation"] == kind) & (found.grid["ranking"] == "score")]
        for names, colour, mark in KINDS.values():
            for i, name in enumerate(names):
                one = some[some["method"] == name].drop_duplicates("size")
                style = ("-", "--", ":", "-.")[i % 4]
                axis.plot(
                    *(one["size"], one["faithfulness"]),
                    style,
                    marker=mark,
                    ms=3.5,
                    color=colour,
                    label=name if len(one) else None,
                )
        axis.axhline(1, color=NEUTRAL, lw=0.8)
        axis.set(xscale="symlog", xlabel="components kept", title=f"{kind} ablation", ylim=(-1, 2))
        axis.set_xlim(left=-0.5)  # there is no circuit of fewer than none
    for axis in axes[: forms.either(1, len(kinds))]:
        axis.set_ylabel("MIB's faithfulness")
    ncols = forms.either(6, 2)
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=ncols, loc="outside lower center")
    return closed(figure)


def edge_table(found: Methods) -> Styler | Markdown:
    """The strongest edges of the whole model, estimated twice and run exactly."""
    if "edges" in found.missing:
        return Markdown(f"Not here: {found.missing['edges']}")
    order = found.edges["exact"].abs().sort_values(ascending=False).index
    names = {"patching": "attribution patching", "ig": "EAP-IG inputs"}
    shown = found.edges.loc[order].rename(columns=names).set_index("edge")
    return common.styled(shown, "edges", **NUMBERS).format("{:z.2f}")


def edges_told(found: Methods) -> Markdown:
    """How many edges there are, what they took, and how far the strongest are right."""
    if "edges" in found.missing:
        return Markdown("")
    there = (found.edge_patching == found.edge_patching).sum()  # NaN: no such edge
    rho = [spearmanr(found.edges[k], found.edges["exact"]).statistic for k in ("patching", "ig")]
    took = found.edge_seconds
    return Markdown(
        f"{there:,} edges, those of the embedding included. One gradient took "
        f"{took['edge_patching']:.1f} CPU seconds, EAP-IG {took['edge_ig']:.1f}. On the "
        f"{len(found.edges)} strongest of either, estimate and exact value agree with Spearman "
        f"{rho[0]:.2f} (attribution patching) and {rho[1]:.2f} (EAP-IG inputs)."
    )
