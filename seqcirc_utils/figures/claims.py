"""Figures, tables and sentences of the chapter on the claims."""

from html import escape

import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from seqcirc_utils.figures import forms
from seqcirc_utils.figures.common import page_table, titled
from seqcirc_utils.figures.style import ANSWER, LAST, closed, in_short
from seqcirc_utils.paper.claims import OPEN
from seqcirc_utils.paper.effects import CONTRADICTED, SUPPORTED, VERDICTS
from seqcirc_utils.paper.evidence import NOT_TESTED
from seqcirc_utils.paper.rules import NOT_SUPPORTED
from seqcirc_utils.paper.verdicts import Claims
from seqcirc_utils.prompts.sequences import TASKS

LOOKS: dict[str, tuple[str, str]] = dict(
    zip(
        VERDICTS,
        ((ANSWER, "✓"), (LAST, "✗"), ("#e3b94d", "?"), ("#d5d5d5", "–")),
        strict=True,
    )
)
"""Verdict to colour and mark."""
LETTER = {SUPPORTED: (ANSWER, "✓"), NOT_SUPPORTED: (LAST, "✗")}
LETTER |= {OPEN: ("#ececec", "open"), NOT_TESTED: ("#d5d5d5", "–")}
"""The same as published."""


@forms.two_forms
def scoreboard(found: Claims) -> Figure:
    """Two counts that are not to be confused: as published, and what carries over."""
    table = found.verdicts
    lines = {
        "As published\n(GPT-2, Llama-2)": (table["as_published"], LETTER),
        f"Carries over to\n{found.title}?": (table["verdict"], LOOKS),
    }
    figure, (axis,) = forms.subplots(size=(7, 1.9), phone=2.2)
    for y, (verdicts, looks) in enumerate(lines.values()):
        left = 0
        for verdict, (colour, _) in looks.items():
            n = int((verdicts == verdict).sum())
            if n:
                axis.barh(y, n, left=left, height=0.7, color=colour)
                text = f"{n} {verdict.replace(' testable here', ' testable')}"
                shade = "white" if colour in (ANSWER, LAST) else "black"
                size = 9 if n > 3 else 7
                text = forms.either(text.replace(" ", "\n", 1), str(n))
                axis.text(left + n / 2, y, text, ha="center", va="center", color=shade, size=size)
            left += n
    if forms.for_phone():
        handles = [Patch(color=c, label=v) for v, (c, _) in (LETTER | LOOKS).items()]
        figure.legend(handles=handles, ncols=2, loc="outside upper center", fontsize=8)
    axis.set_yticks(range(len(lines)), lines)
    axis.invert_yaxis()
    axis.set(xlim=(0, len(table)), xticks=[])
    axis.tick_params(axis="y", length=0)
    sns.despine(ax=axis, left=True, bottom=True)
    return closed(figure)


@forms.two_forms
def verdict_map(found: Claims) -> Figure:
    """Every claim as a square, by topic: whether it carries over, as colour and mark."""
    table = found.verdicts
    topics = list(dict.fromkeys(table["topic"]))
    size = 7, 0.52 * len(topics) + 0.7
    figure, (axis,) = forms.subplots(size=size, phone=size[1] + 0.4)
    for y, topic in enumerate(topics):
        rows = table[table["topic"] == topic]
        for x, (claim, verdict) in enumerate(zip(rows["claim"], rows["verdict"], strict=True)):
            colour, mark = LOOKS[verdict]
            axis.add_patch(Rectangle((x, y), 0.92, 0.86, facecolor=colour, edgecolor="none"))
            shade = "white" if verdict in (SUPPORTED, CONTRADICTED) else "black"
            text = f"{claim}{forms.either(' ', chr(10))}{mark}"
            axis.text(x + 0.46, y + 0.43, text, ha="center", va="center", color=shade)
    widest = table.groupby("topic").size().max()
    axis.set(xlim=(0, widest), ylim=(len(topics), 0), xticks=[])
    axis.set_yticks(np.arange(len(topics)) + 0.43, [forms.wrapped(t, 10) for t in topics])
    axis.tick_params(axis="y", length=0)
    sns.despine(ax=axis, left=True, bottom=True)
    counts = table["verdict"].value_counts()
    handles = [
        Patch(color=colour, label=f"{mark} {verdict} ({counts.get(verdict, 0)})")
        for verdict, (colour, mark) in LOOKS.items()
    ]
    figure.legend(handles=handles, ncols=forms.either(4, 2), loc="outside upper center", fontsize=9)
    return closed(figure)


def _by_verdict(found: Claims) -> dict[str, list[str]]:
    table = found.verdicts
    return {v: table[table["verdict"] == v]["claim"].to_list() for v in VERDICTS}


def numbers(found: Claims) -> dict[str, str]:
    """How many claims got each verdict, as other pages quote it."""
    told = {f"claims-{v.replace(' ', '-')}": str(len(c)) for v, c in _by_verdict(found).items()}
    return told | {"claims": str(len(found.verdicts))}


def verdicts_told(found: Claims) -> Markdown:
    """How many claims got each verdict, and what is open."""
    table = found.verdicts
    open_ = int((table["as_published"] == OPEN).sum())
    held = int((table["as_published"] == SUPPORTED).sum())
    letter = (
        f"**As published:** {open_} of {len(table)} claims are open here, because they speak of "
        "another model and its numbers, and nothing on this page says whether they are true of it."
    )
    if open_ < len(table):
        letter += f" Of the {len(table) - open_} others, {held} are supported."
    counted = "; ".join(
        f"**{len(names)} {verdict}** ({', '.join(names) or 'none'})"
        for verdict, names in _by_verdict(found).items()
    )
    firm = table[table["verdict"].isin([SUPPORTED, CONTRADICTED]) & (table["flips"] != "")]
    moved = ", ".join(firm["claim"]) or "none"
    beside = "There is no run of GPT-2 beside this one: the published figures stand alone."
    if found.gpt2:
        beside = (
            f"GPT-2 was run too (`{found.gpt2['name']}`, known by its {found.gpt2['known_by']}): "
            f"{(table['reproduced'] != '').sum()} claims have reproduced figures, each with its "
            "difference to the published one in brackets."
        )
    return Markdown(
        f"{letter}\n\n**Carries over to {found.title}?** {counted}. Verdicts that a limit moved by "
        f"a fifth would change: {moved}.\n\n{beside}"
    )


def verdict_table(found: Claims) -> HTML:
    """Every claim: as published with its figures, and what carries over with its effects."""
    table = found.verdicts
    lines = {
        column: table[column].str.replace("; ", "\n").str.replace(" / ", "\u202f/\u202f")
        for column in ("published", "here", "reproduced", "effects", "flips")
    }
    shown = pd.DataFrame({"claim": table["claim"] + ". " + table["statement"]})
    shown["as published"] = table["as_published"] + "\n" + lines["published"]
    if found.gpt2:
        shown["reproduced"] = lines["reproduced"].str.replace(" (", "\u202f(")
    shown["carries over?"] = table["verdict"] + "\n" + table["carried"] + " (" + table["kind"] + ")"
    effects = lines["effects"].mask(table["effects"] == "", table["reason"])
    shown["effects here, with 95% intervals"] = effects.map(titled)
    shown["would change with"] = lines["flips"]
    shown["decided on"] = table["read"].map(_pages)
    return page_table(shown.replace("", "–"))


def _pages(read: str) -> HTML:
    """Links to the pages of the runs that a verdict rests on."""
    pages: dict[str, list[str]] = {}
    for run in filter(None, read.split("; ")):
        stage, _, task = run.partition(" ")
        target = f"{task}/{stage}.html" if task else f"{stage}.html"
        name = TASKS[task].title.lower() if task else stage[3:].replace("_", " ")
        pages.setdefault(stage, []).append(f'<a href="{target}">{escape(name)}</a>')
    lines = [
        ", ".join(links)
        if f'"{stage}.html"' in links[0]
        else f"{stage[3:].replace('_', ' ')}: {', '.join(links)}"
        for stage, links in pages.items()
    ]
    return HTML("\n".join(lines) or "–")


def rules_told(found: Claims) -> Markdown:
    """Both rules of every claim, and what decided."""
    return Markdown(
        "\n".join(
            f"- **{r.claim}**\n"
            f"  - **As published: {r.as_published}** ({r.model}). {r.rule} *Here, for comparison:* "
            f"{r.here or 'nothing to compare'}.\n"
            f"  - **Carries over: {r.verdict}.** *Null:* {_sentence(r.null)} "
            f"{_sentence(titled(r.reason))}"
            for r in found.verdicts.itertuples()
        )
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else "All effects are beyond."


def fault_table(found: Claims) -> HTML:
    """Every fault, its effect, and the files that hold it."""
    shown = found.effects.replace({"where": {"": "–"}})
    shown["fault"] += ". " + shown["what"]
    names = {"effect": "measured effect", "where": "file"}
    return page_table(shown[["fault", "effect", "where"]].rename(columns=names))


def faults_told(found: Claims) -> Markdown:
    """How many faults have a measured effect."""
    measured = ~found.effects["effect"].str.startswith(NOT_TESTED)
    return Markdown(
        f"{measured.sum()} of {len(measured)} faults have a measured effect. Files are in "
        "`results/<parameters>/<model>/`, those of one task in its directory."
    )


def headline(found: Claims) -> Markdown:
    """The chapter's finding in a sentence or two."""
    counts = found.counts
    as_published = found.verdicts["as_published"]
    paper = (
        "Whether the paper is right about GPT-2 and Llama-2 is another question, and open here."
        if (as_published == OPEN).all()
        else f"As published, {(as_published == SUPPORTED).sum()} are supported and "
        f"{(as_published == OPEN).sum()} open."
    )
    return in_short(
        f"On {found.title}, of {len(found.verdicts)} claims in their model-free form, "
        f"{counts['supported']} are supported, {counts['contradicted']} contradicted, "
        f"{counts['undecided']} undecided and {counts[NOT_TESTED]} not testable. {paper}"
    )
