"""Figures, tables and sentences of the chapter on the claims."""

from collections.abc import Iterable
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from seqcirc_utils.figures.style import ANSWER, LAST, closed
from seqcirc_utils.paper.evidence import NOT_TESTED
from seqcirc_utils.paper.rules import VERDICTS
from seqcirc_utils.paper.verdicts import Claims


def verdict_map(found: Claims) -> Figure:
    """Every claim as a square, by topic, with its verdict as colour and mark."""
    table = found.verdicts
    looks = dict(zip(VERDICTS, ((ANSWER, "✓"), (LAST, "✗"), ("#d5d5d5", "–")), strict=True))
    topics = list(dict.fromkeys(table["topic"]))
    figure, axis = plt.subplots(figsize=(7, 0.52 * len(topics) + 0.7), layout="constrained")
    for y, topic in enumerate(topics):
        rows = table[table["topic"] == topic]
        for x, (claim, verdict) in enumerate(zip(rows["claim"], rows["verdict"], strict=True)):
            colour, mark = looks[verdict]
            axis.add_patch(Rectangle((x, y), 0.92, 0.86, facecolor=colour, edgecolor="none"))
            shade = "black" if verdict == NOT_TESTED else "white"
            axis.text(x + 0.46, y + 0.43, f"{claim} {mark}", ha="center", va="center", color=shade)
    widest = table.groupby("topic").size().max()
    axis.set(xlim=(0, widest), ylim=(len(topics), 0), xticks=[])
    axis.set_yticks(np.arange(len(topics)) + 0.43, topics)
    axis.tick_params(axis="y", length=0)
    sns.despine(ax=axis, left=True, bottom=True)
    counts = table["verdict"].value_counts()
    handles = [
        Patch(color=colour, label=f"{mark} {verdict} ({counts.get(verdict, 0)})")
        for verdict, (colour, mark) in looks.items()
    ]
    figure.legend(handles=handles, ncols=3, loc="outside upper center")
    return closed(figure)


def _by_verdict(found: Claims) -> dict[str, list[str]]:
    table = found.verdicts
    return {v: table[table["verdict"] == v]["claim"].to_list() for v in VERDICTS}


def numbers(found: Claims) -> dict[str, str]:
    """How many claims got each verdict, as other pages quote it."""
    return {f"claims-{v.replace(' ', '-')}": str(len(c)) for v, c in _by_verdict(found).items()}


def verdicts_told(found: Claims) -> Markdown:
    """How many claims got each verdict, and whether GPT-2's figures stand beside them."""
    counted = "; ".join(
        f"**{len(names)} {verdict}** ({', '.join(names) or 'none'})"
        for verdict, names in _by_verdict(found).items()
    )
    beside = (
        "There is no run of GPT-2 beside this one, so nothing is reproduced: the published figures "
        "stand alone."
    )
    if found.gpt2:
        beside = (
            f"GPT-2 was run too (`{found.gpt2['name']}`, known by its {found.gpt2['known_by']}): "
            f"{(found.verdicts['reproduced'] != '').sum()} claims have reproduced figures, each "
            "with its difference to the published one in brackets."
        )
    return Markdown(f"Of {len(found.verdicts)} claims: {counted}. {beside}")


def verdict_table(found: Claims) -> HTML:
    """Every claim with the figures that were published, those found here, and the verdict."""
    columns = ["published", "here", *(["reproduced"] if found.gpt2 else []), "verdict"]
    shown = found.verdicts[columns].replace("", "–")
    shown.insert(0, "claim", found.verdicts["claim"] + ". " + found.verdicts["statement"])
    for column in columns[:-1]:  # a line per figure, whose values stay together
        lines = shown[column].str.replace("; ", "\n")
        shown[column] = lines.str.replace(" / ", "\u202f/\u202f").str.replace(" (", "\u202f(")
    return _page_table(shown)


def rules_told(found: Claims) -> Markdown:
    """The rule of every claim, and what decided."""
    return Markdown(
        "\n".join(
            f"- **{r.claim}: {r.verdict}** ({r.model}). *Rule.* {r.rule} *Found.* "
            f"{r.reason.rstrip('.') or 'all parts hold'}."
            for r in found.verdicts.itertuples()
        )
    )


def fault_table(found: Claims) -> HTML:
    """Every fault, its effect, and the files that hold it."""
    shown = found.effects.replace({"where": {"": "–"}})
    shown["fault"] += ". " + shown["what"]
    names = {"effect": "measured effect", "where": "file"}
    return _page_table(shown[["fault", "effect", "where"]].rename(columns=names))


def faults_told(found: Claims) -> Markdown:
    """How many faults have a measured effect."""
    measured = ~found.effects["effect"].str.startswith(NOT_TESTED)
    return Markdown(
        f"{measured.sum()} of {len(measured)} faults have a measured effect. Files are in "
        "`results/<parameters>/<model>/`, those of one task in its directory."
    )


def _page_table(frame: pd.DataFrame) -> HTML:
    """A table whose text wraps, and which scrolls where the page is too narrow."""
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in frame.to_numpy())
    return HTML(
        '<div style="overflow-x:auto">'
        '<table class="dataframe" style="min-width:40em;font-size:85%">'
        f"<thead><tr>{_cells(frame.columns, 'th')}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cells(values: Iterable[str], kind: str = "td") -> str:
    style = "text-align:left;vertical-align:top;padding:.3em .6em;white-space:pre-line"
    return "".join(f'<{kind} style="{style}">{escape(value)}</{kind}>' for value in values)
