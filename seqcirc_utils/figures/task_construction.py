"""How the findings on a task look."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from seqcirc_utils.chapters.task_construction import TaskConstruction
from seqcirc_utils.figures import common, forms
from seqcirc_utils.figures.style import ANSWER, NEUTRAL, closed, in_short
from seqcirc_utils.prompts.sequences import TASKS
from seqcirc_utils.statistics import Interval


def prompt_table(found: TaskConstruction, n: int = 4) -> HTML:
    """The first prompts beside their corrupted ones."""
    pairs = found.prompts[["prompt", "answer", "last member"]].head(n)
    pairs.insert(1, "corrupted prompt", found.corrupted[: len(pairs)])
    return common.page_table(pairs)


def first_prompt(found: TaskConstruction) -> Figure:
    """The first prompt, token by token."""
    return token_strip(found.tokens, found.groups)


def front_told(found: TaskConstruction) -> Markdown:
    """What stands in front of prompts."""
    return Markdown(f"In front of every prompt: {found.front}.")


def scores_told(found: TaskConstruction) -> Markdown:
    """How well the model does, and what the paper's filter keeps."""
    accuracy, logit_diff, filtered = found.accuracy, found.logit_diff, found.filtered
    several = ", " in found.templates  # one alone is only named
    text = (
        f"On {found.n} {TASKS[found.task].title.lower()} prompts"
        f"{f' – {found.templates} –' if several else ''} {found.model_title} answers "
        f"**{accuracy['mean']:.0%}** correctly (95% interval {accuracy['low']:.0%} to "
        f"{accuracy['high']:.0%}), with a mean logit difference of **{logit_diff['mean']:.2f}** "
        f"[{logit_diff['low']:.2f}, {logit_diff['high']:.2f}]; on the corrupted prompts the "
        f"difference is {found.corrupted_logit_diff:.2f}. "
    )
    if filtered:
        text += (
            f"The paper's filter is on: {filtered['kept']} prompts were kept of "
            f"{filtered['drawn']} drawn{': ' + filtered['templates'] if several else ''}."
        )
    else:
        text += (
            "The paper's filter (answer on top, with more than twice the last member's "
            f"probability) is off here; it would keep {found.paper_filter_keeps} of {found.n}."
        )
    if not logit_diff["mean"] > 0:
        text += (
            f" **{found.model_title} does not prefer the next member: later chapters refuse this "
            "task.**"
        )
    return Markdown(text)


def numbers(found: TaskConstruction) -> dict[str, str]:
    """Numbers that other pages may quote."""
    return {
        "accuracy": f"{found.accuracy['mean']:.2f}",
        "logit-difference": f"{found.logit_diff['mean']:.1f}",
    }


def _missing(found: TaskConstruction, label: str) -> dict[str, str]:
    """The rows of a section that are not there, by what stands in their first column, and why."""
    rows = found.missing.items()
    return {k.removeprefix(f"{label} "): why for k, why in rows if k.startswith(f"{label} ")}


def start_panels(found: TaskConstruction) -> Figure:
    """Scores by first member."""
    table = pd.DataFrame(found.by_start)
    return accuracy_panels(table, "first member", "first member shown")


def starts_told(found: TaskConstruction) -> Markdown:
    """How much of the scores' spread is the starts', and what that makes of an interval."""
    if not found.starts:
        return Markdown(
            "No start has two prompts here, so that what starts differ by cannot be told from what "
            "prompts of one start differ by."
        )
    ends = {end: found.starts[end] for end in ("low", "high")}
    own, starts = Interval(**found.logit_diff), Interval(**found.logit_diff | ends)
    return Markdown(
        f"**{found.starts['between']:.0%}** of the variance of the logit difference lies between "
        f"starts. Intervals over prompts count these as drawn, with their starts: {own}. "
        "For other prompts of the same starts, which take turns, that is too wide. Were the "
        f"{len(found.by_start)} starts a sample of many, it would be {starts} (Student's t)."
    )


def length_panels(found: TaskConstruction) -> Figure | Markdown:
    """Scores by number of members shown."""
    if reasons := _missing(found, "members shown"):
        return Markdown("Not here: " + " ".join(f"{n} shown: {why}" for n, why in reasons.items()))
    return accuracy_panels(pd.DataFrame(found.by_length), "members shown", "members shown")


def template_table(found: TaskConstruction) -> pd.DataFrame:
    """Scores by template; one that the tokenizer does not allow has its reason in place of them."""
    rows = [
        {
            "template": row["template"],
            "prompts": f"{row['n']}",
            "accuracy": "{accuracy:.0%} ({accuracy_low:.0%} to {accuracy_high:.0%})".format(**row),
            "logit difference": str(
                Interval(row["logit_diff"], row["logit_diff_low"], row["logit_diff_high"])
            ),
        }
        for row in found.by_template
    ]
    reasons = _missing(found, "template")
    rows += [{"template": name, "not here": why} for name, why in reasons.items()]
    return pd.DataFrame(rows).fillna("–").set_index("template")


@forms.two_forms
def token_strip(tokens: Sequence[str], groups: Mapping[str, Sequence[bool]]) -> Figure:
    """One prompt, token by token, coloured by position group."""
    palette = [*sns.color_palette("crest", len(groups) - 3), "#E69F00", "#D55E00", "#dddddd"]
    colours = dict(zip(groups, palette, strict=True))
    per_row = forms.either(len(tokens), 16)
    rows = -(-len(tokens) // per_row)
    figure, axes = forms.subplots(rows, size=(9, 1.9), phone=1.6 * rows, layout=None)
    for i, token in enumerate(tokens):
        axis = axes[i // per_row]
        group = next(name for name, mask in groups.items() if mask[i])
        axis.add_patch(Rectangle((i, 0), 1, 1, facecolor=colours[group], edgecolor="white"))
        dark = sum(plt.matplotlib.colors.to_rgb(colours[group])) < 1.5
        axis.text(
            i + 0.5,
            0.5,
            token.replace(" ", "␣"),
            rotation=90,
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
            family="DejaVu Sans Mono",
        )
    for first, axis in zip(range(0, len(tokens), per_row), axes, strict=True):
        shown = np.arange(first, min(first + per_row, len(tokens)))
        axis.set(xlim=(first, first + per_row), ylim=(0, 1), yticks=[])
        axis.set_xticks(shown + 0.5, shown, fontsize=7)
        sns.despine(ax=axis, left=True)
    axes[-1].set_xlabel("token position")
    handles = [Patch(color=colours[name], label=name) for name in groups]
    axes[0].legend(
        handles=handles, ncols=forms.either(len(groups), 3), loc="lower center",
        bbox_to_anchor=(0.5, 1), fontsize=8,
    )  # fmt: skip
    return closed(figure)


@forms.two_forms
def accuracy_panels(table: pd.DataFrame, by: str, label: str) -> Figure:
    """Accuracy and logit difference, with 95% intervals, against one property of the prompts.

    Args:
        table: Columns ``by``, ``accuracy``, ``accuracy_low``, ``accuracy_high``, ``logit_diff``,
            ``logit_diff_low``, ``logit_diff_high``, ``n``.
        by: Column on the horizontal axis.
        label: Its axis label.
    """
    figure, axes = forms.subplots(1, 2, size=(9, 3), phone=5)
    x = np.arange(len(table))
    for axis, name, title in zip(
        axes,
        ("accuracy", "logit_diff"),
        ("accuracy (top token is the answer)", "logit difference"),
        strict=True,
    ):
        spread = common.spread(table, name, f"{name}_low", f"{name}_high")
        axis.errorbar(x, table[name], yerr=spread, fmt="o", color=ANSWER, capsize=3)
        axis.set_xticks(x, table[by], rotation=30 if table[by].dtype.kind not in "if" else 0)
        axis.set(xlabel=label, ylabel=title, xlim=(-0.5, len(table) - 0.5))
    axes[0].set_ylim(-0.03, 1.03)
    axes[1].axhline(0, color=NEUTRAL, lw=0.8)
    return closed(figure)


def headline(found: TaskConstruction) -> Markdown:
    """The chapter's finding in a sentence or two."""
    right, lead = found.accuracy, found.logit_diff
    return in_short(
        f"{found.model_title} names the next member in {right['mean']:.0%} of prompts "
        f"({right['low']:.0%} to {right['high']:.0%}). The next member leads the last one shown by "
        f"{lead['mean']:.1f} logits, and by {found.corrupted_logit_diff:z.1f} where members are "
        "random."
    )
