"""How the findings on roles look."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from seqcirc_utils.analyses.roles import HEAD_ROLES, MLP_ROLES, NONE
from seqcirc_utils.chapters.component_roles import ComponentRoles
from seqcirc_utils.components import Component
from seqcirc_utils.figures import common, forms
from seqcirc_utils.figures.style import ANSWER, LAST, NEUTRAL, closed, in_short, many
from seqcirc_utils.statistics import Interval

# What writes a member is orange or pink, what moves one blue, what looks at one green.
_ROLE_COLOURS = {
    "next member": "#D55E00",
    "copy": "#E69F00",
    "inhibition": "#CC79A7",
    "transport to the end": "#0072B2",
    "duplicate token": "#56B4E9",
    "member detection": "#009E73",
    "promotes next member": "#D55E00",
    "copies last member": "#E69F00",
    NONE: "#dddddd",
    "": "white",
}
_LOOKS = {
    "end →\nmembers": "end_to_members",
    '"in" → earlier\n"in"': "in_to_copies",
    "member → earlier\nmembers": "members_to_members",
    "… in random\norder": "members_to_members_random",
    "end → newest\nmember": "end_to_newest",
    "filler → earlier\nfillers": "fillers_to_fillers",
    "member →\nitself": "members_to_themselves",
    "member → token\nbefore it": "members_to_previous",
    "member →\nfirst token": "members_to_first",
}


def _heads(found: ComponentRoles) -> pd.DataFrame:
    """The rows of all heads, by component."""
    return found.components[found.components["head"].notna()].set_index("component")


def rules_table(found: ComponentRoles) -> pd.DataFrame:
    """The rules in words, with their thresholds, in the order in which they are tried.

    A head may look to several places in A: the one counts where attention times the size of the
    head's write is largest.
    """
    t = found.thresholds
    end = f"end to members ≥ {t['attention']:g} and ≥ {t['lift']:g} × even spread"
    write = f"≥ {t['ov_share']:.0%} of members hit (top {t['top_k']}), p ≤ {t['ov_p']:g}"
    rise = f"+ {t['lens_step']:g}"
    rows = [
        ("next member", "head", end, f"next: {write}, more than copy"),
        ("copy", "head", end, f"copy: {write}"),
        ("inhibition", "head", end, f"lowers the last member's logit by ≥ {t['direct']:g}"),
        ("transport to the end", "head", end, "none of these"),
        ("duplicate token", "head", '"in" to earlier "in", likewise', "anything"),
        ("member detection", "head", "members to earlier members, likewise", "anything"),
        ("promotes next member", "MLP", "", f"lens probability of the answer {rise}"),
        ("copies last member", "MLP", "", f"lens probability of the last member {rise}"),
    ]
    columns = ["role", "of", "A: where it looks", "what it writes"]
    return pd.DataFrame(rows, columns=columns).set_index("role")


def attention_map(found: ComponentRoles) -> Figure:
    """Mean attention between groups of tokens: the circuit's heads (8 to 24), by importance."""
    heads = _heads(found).sort_values(["in_circuit", "ablation"], ascending=[False, True])
    first = heads.head(max(8, min(24, heads["in_circuit"].sum())))
    shown = 100 * first[list(_LOOKS.values())].set_axis(list(_LOOKS), axis=1)
    shown = shown.rename_axis("head (most important first)")
    return common.table_heatmap(shown, "mean attention (%)", ".0f", diverging=False, limit=100)


def attention_told(found: ComponentRoles) -> Markdown:
    """How many heads look where the rules ask for."""
    heads, spread, t = _heads(found), found.spread, found.thresholds
    end, copies, members = (
        (heads[name] >= max(t["attention"], t["lift"] * spread[name])).sum()
        for name in ("end_to_members", "in_to_copies", "members_to_members")
    )
    return Markdown(
        f"Of all {len(heads)} heads, **{end}** look from the end to members by the rule's measure "
        f"(evenly spread attention would give {spread['end_to_members']:.0%}), {copies} from "
        f'"in" to earlier "in" ({spread["in_to_copies"]:.0%}), and {members} from members to '
        f"earlier members ({spread['members_to_members']:.0%})."
    )


def _scores(
    found: ComponentRoles, read: str, words: str = "members", column: str = "top5"
) -> pd.DataFrame:
    """One column of OV scores of every head on one input: ``copy`` and ``next``, by component."""
    rows = found.ov[(found.ov["input"] == read) & (found.ov["words"] == words)]
    scores = rows.pivot(index="component", columns="score", values=column)
    return scores.loc[_heads(found).index]


@common.needs("ov")
@forms.two_forms
def ov_scatter(found: ComponentRoles) -> Figure:
    """OV copy score against next score of every head, on two inputs; the best are named."""
    panels = {"own": "on the head's own input", "after block 0": "on the stream after block 0"}
    threshold, in_circuit = found.thresholds["ov_share"], _heads(found)["in_circuit"]
    figure, axes = forms.subplots(1, 2, size=(8.5, 3.9), phone=6.6)
    for axis, (read, title) in zip(axes, panels.items(), strict=True):
        scores = _scores(found, read)
        colour = np.where(in_circuit, ANSWER, "#bbbbbb")
        axis.scatter(100 * scores["copy"], 100 * scores["next"], s=18, c=colour, lw=0, alpha=0.8)
        for mark in (axis.axhline, axis.axvline):
            mark(100 * threshold, color=NEUTRAL, lw=0.8, ls="--")
        best = scores[scores[["copy", "next"]].max(axis=1) >= threshold]
        # Heads that share a place share a label.
        for _, near in best.groupby([best["copy"].round(1), best["next"].round(1)]):
            names = [*near.index[:3], *(["…"] if len(near) > 3 else [])]
            x, y = near["copy"].mean(), near["next"].mean()
            axis.annotate(
                ", ".join(names),
                (100 * x, 100 * y),
                fontsize=7.5,
                xytext=(0, 6),
                textcoords="offset points",
                rotation=60 if y < threshold else 0,  # many copy and few write the next: a crowd
                ha="right" if x > 0.7 and y >= threshold else "left",
            )
        axis.set(xlim=(-4, 106), ylim=(-4, 112), title=title, xlabel="copy score (% of members)")
    for axis in axes[: forms.either(1, 2)]:
        axis.set_ylabel("next score (% of members)")
    handles = [
        Patch(color=ANSWER, label="head in the circuit"),
        Patch(color="#bbbbbb", label="head outside"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, fontsize=8)
    return closed(figure)


@common.needs("ov")
def ov_told(found: ComponentRoles, task: str) -> Markdown:
    """The best heads by next score, and what the published shortcuts change."""
    own, p, t = _scores(found, "own"), _scores(found, "own", column="p"), found.thresholds
    high = own >= t["ov_share"]  # columns copy and next
    significant = p <= t["ov_p"]
    both, chance = (high & significant).sum(), (high & ~significant).sum()
    best = own["next"].idxmax()
    places = [name for name in found.ov if name.startswith("place")]
    by_place = [_scores(found, "own", column=place).loc[best, "next"] for place in places]
    bare = [_scores(found, "bare sequence", column=place)["next"].max() for place in places]
    wrong = (high != (_scores(found, "after block 0") >= t["ov_share"])).sum()
    text = (
        f"The highest next score on own inputs is **{own.loc[best, 'next']:.0%}** (head {best}, "
        f"copy score {own.loc[best, 'copy']:.0%}; by the member's place in the prompt: "
        f"{', '.join(map('{:.0%}'.format, by_place))}); the mean over all {len(own)} heads is "
        f"{own['next'].mean():.1%} (copy {own['copy'].mean():.1%}). Heads whose score is high "
        f"enough and better than for shuffled successors: **{both['next']}** for next, "
        f"{both['copy']} for copy. Heads whose next score is high enough but no better than for "
        f"shuffled successors (they write members, and no particular one): {chance['next']}. By "
        f"chance the p-value alone would pass at most {t['ov_p'] * len(own):.1f} heads; for next "
        f"it passes {significant['next'].sum()}.\n\nHeads that the shortcut after block 0 puts on "
        f"the other side of the threshold: {wrong['next']} for next, {wrong['copy']} for copy. "
        "The published scores were read on the bare sequence with nothing in front. There the "
        "first member stands where heads rest their attention, and the best next score is "
        f"{bare[0]:.0%} at the first member, {bare[1]:.0%} at the second."
    )
    if (found.ov["words"] == "ordinals").any():
        ordinal = _scores(found, "own", "ordinals")["next"]
        text += (
            '\n\nThe published code scored months against *ordinals* (is "third" on top after '
            f"February?). Scored so, the best head for {task.replace('_', ' ')} has "
            f"{ordinal.max():.0%} ({ordinal.idxmax()}), against {own.loc[best, 'next']:.0%} when "
            "the members themselves are wanted: the two are different questions."
        )
    return Markdown(text)


@common.needs("direct")
def direct_told(found: ComponentRoles) -> Markdown:
    """Which heads write most against the last member, and most for the answer."""
    heads = _heads(found)
    low, top = heads.loc[heads["direct_last"].idxmin()], heads.loc[heads["direct_next"].idxmax()]
    against = Interval(*low[["direct_last", "direct_last_low", "direct_last_high"]])
    return Markdown(
        f"Head **{low.name}** writes most against the last member ({against} logits); at the end "
        f"it pays {low['end_to_members']:.0%} of its attention to members. Head **{top.name}** "
        f"writes most for the answer ({top['direct_next']:+.2f} logits); it pays "
        f"{top['end_to_members']:.0%} there."
    )


@common.needs("lens")
@forms.two_forms
def lens_steps(found: ComponentRoles) -> Figure:
    """Change of the lens probability across each attention layer and each MLP."""
    frame = found.lens[found.lens["part"] != "block"]
    figure, axes = forms.subplots(2, size=(7.5, 4.6), phone=4.4, sharex=True)
    for axis, (part, rows) in zip(axes, frame.groupby("part", sort=True), strict=True):
        for name, colour, shift in (("next", ANSWER, -0.2), ("last", LAST, 0.2)):
            x, mean = rows["layer"] + shift, 100 * rows[name]
            spread = 100 * common.spread(rows, name, f"{name}_low", f"{name}_high")
            label = {"next": "next member (answer)", "last": "last member"}[name]
            axis.bar(x, mean, width=0.4, color=colour, label=label)
            axis.errorbar(x, mean, yerr=spread, fmt="none", ecolor="black", elinewidth=0.7)
        axis.axhline(0, color=NEUTRAL, lw=0.8)
        axis.set_title({"attention": "across the attention layer", "mlp": "across the MLP"}[part])
        axis.set_ylabel("change (points)")
    axes[0].legend(loc="upper left", fontsize=8)
    axes[1].set_xlabel("layer")
    return closed(figure)


@common.needs("lens")
def lens_told(found: ComponentRoles) -> Markdown:
    """Which MLPs add to the answer, and where it passes the last member."""
    by_part = found.lens.set_index(["part", "layer"])
    added, overtakes = by_part.loc["mlp", "next"], by_part["overtakes"]
    switches = by_part["switches"].groupby("part").max()
    up, down = added.idxmax(), added.idxmin()
    picture = (
        f"occurs in {switches['block']:.0%} of the prompts at the block where it is most frequent, "
        f"and in {switches['mlp']:.0%} at such an MLP."
        if switches[["block", "mlp"]].any()
        else "occurs at no block and at no MLP, in none of the prompts."
    )
    return Markdown(
        f"**MLP {up}** adds most to the answer ({100 * added[up]:+.1f} points), MLP {down} takes "
        f"most away ({100 * added[down]:+.1f}). The answer passes the last member for good across "
        f"an attention layer in {overtakes['attention'].sum():.0%} of the prompts (most often "
        f"layer {overtakes['attention'].idxmax()}) and across an MLP in "
        f"{overtakes['mlp'].sum():.0%} (most often MLP {overtakes['mlp'].idxmax()}). The paper's "
        "picture, the last member on top of the whole vocabulary before one block and the answer "
        f"after it, {picture}"
    )


@forms.two_forms
def role_map(found: ComponentRoles) -> Figure:
    """Role of every component as the colour of its cell; the circuit's components are framed."""
    frame = found.components
    names = list(map(Component.parse, frame["component"]))
    n_layers, n_heads = common.shape(names)
    size = min(0.6 * n_heads + 3.4, 9), 0.2 * n_layers + 1.2
    figure, (axis,) = forms.subplots(size=size, phone=0.17 * n_layers + 2.4)
    for name, role, kept in zip(names, frame["role"], frame["in_circuit"], strict=True):
        x, y = common.corner(name, n_heads, gap=0.6)
        cell = (x + 0.06, y + 0.1), 0.88, 0.8
        axis.add_patch(Rectangle(*cell, fc=_ROLE_COLOURS[role], ec="none"))
        if kept:
            axis.add_patch(Rectangle(*cell, fc="none", ec="black", lw=1.2))
    axis.set(xlim=(-0.2, n_heads + 1.8), ylim=(-0.2, n_layers + 0.2))
    axis.set(xlabel="head", ylabel="layer")
    common.model_axes(axis, n_layers, n_heads, gap=0.6, step=2 if n_layers > 8 else 1)
    taken = {*frame["role"], NONE}
    handles = [
        Patch(color=colour, label=role or "cannot be told (blank)")
        for role, colour in _ROLE_COLOURS.items()
        if role in taken
    ]
    handles.append(Patch(fc="none", ec="black", label="circuit"))
    place, ncols = forms.either(("outside right upper", 1), ("outside upper center", 2))
    figure.legend(handles=handles, loc=place, ncols=ncols, fontsize=8)
    return closed(figure)


def roles_table(found: ComponentRoles) -> pd.DataFrame:
    """The circuit's components that have a role: how sure it is, and what their ablation costs."""
    rows = found.components.set_index("component")
    rows = rows[rows["in_circuit"] & ~rows["role"].isin([NONE, ""])]
    return pd.DataFrame(
        {
            "role": rows["role"],
            "sure": rows["confidence"].map("{:.0%}".format),
            "otherwise": rows["rival"],
            "cost of ablation": (-rows["ablation"]).map("{:.0%}".format),
        }
    )


def _counted(rows: pd.DataFrame) -> str:
    """How many components have each role, in words."""
    counts = rows["role"].value_counts()
    order = [role for role in (*HEAD_ROLES, *MLP_ROLES, NONE, "") if role in counts]
    return ", ".join(f"{counts[role]} {role or 'not told'}" for role in order) or "nothing"


def numbers(found: ComponentRoles) -> dict[str, str]:
    """What other pages quote."""
    heads = _heads(found)
    return {"head-roles": _counted(heads[heads["in_circuit"]])}


def _either(names: Sequence[str]) -> str:
    *first, last = [*names] or [""]
    return f"{', '.join(first)} or {last}" if first else last


@common.needs("ov", "direct", "lens")
def roles_told(found: ComponentRoles) -> Markdown:
    """The roles of the circuit's components and of others, and how sure they are."""
    everything, heads = found.components, _heads(found)
    inside = everything[everything["in_circuit"]]
    mlps = inside[inside["head"].isna()]
    outside = heads[~heads["in_circuit"] & (heads["role"] != NONE)]
    heads = heads[heads["in_circuit"]]
    detecting = heads[heads["role"] == "member detection"]
    special = detecting["members_to_members"] >= 2 * detecting["fillers_to_fillers"]
    others = (
        "" if special.all() else "; the others go by the place in the sentence, in part at least"
    )
    return Markdown(
        f"The circuit's {many(len(heads), 'head')}: **{_counted(heads)}**. Its "
        f"{many(len(mlps), 'MLP')}: "
        f"{_counted(mlps)}. No head of the circuit has the role "
        f"{_either(found.absent_head_roles or []) or '(each is taken)'}. The rules "
        "say what a head does, the circuit whether it matters: "
        f"{many(len(outside), 'head')} outside it could be named with a role too. "
        f"{(inside['confidence'] < 0.9).sum()} of the circuit's components are less than 90% sure. "
        f"Of the {len(detecting)} that detect members, {special.sum()} look from "
        f"member to member at least twice as much as from filler to filler{others}."
    )


@common.needs("ov", "direct", "lens", "shuffled")
def shuffled_told(found: ComponentRoles) -> Markdown:
    """How many components the same rules give a role where nothing was learned."""
    lines = []
    for kind, roles in (("heads", HEAD_ROLES), ("MLPs", MLP_ROLES)):
        total = int((found.components["head"].isna() == (kind == "MLPs")).sum())
        here, there = (
            [f"{counts[role]} {role}" for role in roles if role in counts]
            for counts in (found.roles, found.shuffled_roles)
        )
        sums = [
            sum(counts.get(role, 0) for role in roles)
            for counts in (found.roles, found.shuffled_roles)
        ]
        lines.append(
            f"- {total} {kind}: {sums[0]} have a role ({', '.join(here) or 'none'}); with shuffled "
            f"weights **{sums[1]}** ({', '.join(there) or 'none'})"
        )
    idle = [
        role
        for role in (*HEAD_ROLES, *MLP_ROLES)
        if 0 < found.roles.get(role, 0) <= found.shuffled_roles.get(role, 0)
    ]
    said = "Each role is more frequent in the model than there."
    if idle:
        said = (
            f"No more frequent in the model than there: {', '.join(idle)}. That some component has "
            "such a role is no sign of something learned."
        )
    return Markdown("\n".join(lines) + f"\n\n{said}")


@forms.two_forms
def attention_patterns(found: ComponentRoles) -> Figure:
    """Attention of a few heads on one prompt, from marked tokens (rows, bold) to all (columns)."""
    tokens, rows = found.tokens, found.marked
    roles = _heads(found)["role"]
    patterns = {
        f"{name}: {roles[name]}" if roles[name] else name: pattern
        for name, pattern in zip(found.examples, found.patterns, strict=True)
    }
    words = [token.replace(" ", "␣").replace("<|endoftext|>", "<start>") for token in tokens]
    height, small = (0.19 * len(rows) + 0.35) * len(patterns) + 1.1, forms.either(7, 6)
    figure, axes = forms.subplots(
        len(patterns),
        size=(7, height),
        phone=height,
        width=max(forms.PHONE, 0.13 * len(tokens) + 1.6),
        sharex=True,
    )
    for axis, (title, pattern) in zip(axes, patterns.items(), strict=True):
        shown = pattern[rows]
        future = np.arange(len(tokens)) > np.asarray(rows)[:, None]
        image = axis.imshow(
            np.ma.masked_array(100 * shown, future), cmap="Blues", vmin=0, vmax=100, aspect="auto"
        )
        axis.set_facecolor("#f3f3f3")
        axis.set_yticks(range(len(rows)), [f"{words[r]} ({r})" for r in rows], fontsize=7)
        for (y, x), value in np.ndenumerate(shown):
            if value >= 0.2 and not future[y, x]:
                colour = "white" if value > 0.6 else "black"
                text = f"{100 * value:.0f}"
                axis.text(x, y, text, ha="center", va="center", fontsize=small, color=colour)
        axis.set_title(title, fontsize=9)
        axis.tick_params(length=0)
    axes[-1].set_xticks(range(len(tokens)), words, rotation=90, fontsize=7)
    for position, label in enumerate(axes[-1].get_xticklabels()):
        label.set_fontweight("bold" if position in rows else "normal")
    figure.supylabel("from", fontsize=9)
    axes[-1].set_xlabel("to")
    figure.colorbar(image, ax=axes, label="attention (%)", shrink=0.6, aspect=30)
    return closed(figure)


def headline(found: ComponentRoles) -> Markdown:
    """The chapter's finding in a sentence or two."""
    heads = _heads(found)
    inside = heads[heads["in_circuit"]]
    absent = found.absent_head_roles
    lacking = f" No head of it has the role {_either(absent)}." if absent else ""
    return in_short(f"The circuit's {many(len(inside), 'head')}: {_counted(inside)}.{lacking}")
