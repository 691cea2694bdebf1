"""What the findings on what the tasks share say: every sentence, and the numbers of the book."""

from collections.abc import Iterable
from itertools import permutations, product

import pandas as pd
from IPython.display import Markdown

from seqcirc_utils.analyses.roles import NONE
from seqcirc_utils.chapters.circuit_tasks import TITLES
from seqcirc_utils.chapters.cross_task import CrossTask
from seqcirc_utils.figures.circuit_discovery import SIGNIFICANT
from seqcirc_utils.figures.common import needs
from seqcirc_utils.figures.cross_task import size
from seqcirc_utils.figures.style import enumerated, in_short, many
from seqcirc_utils.statistics import short

SPARED = 50
"""A control that keeps this percentage of its score without some heads does not depend on them."""


def _span(values: Iterable[float], none: str = "nothing (there is but one task)") -> str:
    """The least and the largest of some percentages."""
    values = sorted(values)
    if not values:
        return none
    low, high = f"{values[0]:z.0f}%", f"{values[-1]:z.0f}%"
    return low if low == high else f"{low} to {high}"


def _shares(found: CrossTask) -> pd.Series:
    """What is left, in percent, by ``(mode, set, task)``."""
    return 100 * found.transfer.set_index(["mode", "set", "task"])["mean"]


def _controls(found: CrossTask) -> list[str]:
    return found.tasks.loc[found.tasks["control"], "task"].tolist()


def left_out_told(found: CrossTask) -> Markdown:
    """Which tasks and controls are left out, and why."""
    left_out = {k: why for k, why in found.left_out.items() if k != "ioi circuit"}
    if left_out:
        reasons = "; ".join(f"*{name}*, because {why}" for name, why in left_out.items())
        return Markdown(f"Left out: {reasons}")
    return Markdown(
        "No task is left out. All of the following is measured on "
        f"{found.n_prompts} prompts per task unless it says otherwise."
    )


@needs("circuits")
def overlap_told(found: CrossTask) -> Markdown:
    """What all circuits share, against chance, and what the overlap of MLPs cannot say."""
    layers, heads, mlps = found.model["layers"], found.shared["heads"], found.shared["MLPs"]
    circuits = found.circuits.values()
    kept = [sum(c.head is None for c in circuit) for circuit in circuits]
    can_say = (
        "All circuits keep nearly all MLPs, so they must overlap: whichever they keep, at least "
        f"{max(0, sum(kept) - (len(kept) - 1) * layers)} are in all of them."
        if min(kept) >= 0.8 * layers
        else f"The circuits keep {min(kept)} to {max(kept)} of {layers} MLPs, so that "
        f"chance alone gives {mlps['expected']:.1f} shared ones."
    )
    return Markdown(
        f"All {len(kept)} circuits share **{many(len(heads['shared']), 'head')}** "
        f"({', '.join(heads['shared']) or 'none'}). Random circuits of the same sizes would share "
        f"{heads['expected']:.1f} (p = {short(heads['p'], 1)}), those with as many heads in each "
        f"layer {found.layer_matched['expected']:.1f} "
        f"(p = {short(found.layer_matched['p'], 1)}). The circuits share "
        f"**{many(len(mlps['shared']), 'MLP')}**; random ones would share {mlps['expected']:.1f} "
        f"(p = {short(mlps['p'])}).\n\n"
        f"**What MLP overlap can and cannot say.** {can_say} Each layer has one MLP, so there is "
        "no layer-matched null: if every text needs the first and the last MLPs, that looks the "
        "same as a mechanism of sequences. An MLP is also large. Two tasks may use different "
        "neurons of it, and both circuits keep it. So a shared MLP only says that both tasks need "
        "*something* computed at that depth. The argument rests on the heads."
    )


@needs("circuits")
def by_search_told(found: CrossTask) -> Markdown:
    """Whether the overlap of heads depends on the search that found the circuits."""
    frame = found.by_search
    if frame.empty:
        return Markdown("With one circuit there is nothing to compare.")
    more = frame["layer_p"] < SIGNIFICANT
    few, many = frame["shared"].min(), frame["shared"].max()
    expected = f"{frame['layer_expected'].min():.1f} to {frame['layer_expected'].max():.1f}"
    whose = (
        "for every search"
        if more.all()
        else f"for {enumerated(frame['search'][more])}, "
        f"but not for {enumerated(frame['search'][~more])}"
        if more.any()
        else "for no search"
    )
    return Markdown(
        f"By search, the circuits share {few} to {many} heads, where random circuits with as many "
        f"heads in each layer would share {expected}. That is more than chance "
        f"(p < {SIGNIFICANT}) {whose}."
    )


@needs("circuits")
def edges_told(found: CrossTask) -> Markdown:
    """How many edges all circuits share, against chance."""
    if "edges" in found.missing:
        return Markdown(f"**Edges** are not compared: {found.missing['edges']}")
    edges = found.edges
    return Markdown(
        f"**Edges.** All circuits share {many(len(edges.shared), 'edge')}. Among the "
        f"{edges.possible} edges that could join components of every circuit, "
        f"{len(edges.shared)} are in all of them, where chance would give {edges.expected:.1f} "
        f"(p = {short(edges.p or 0.0, 1)})."
    )


def outside_told(found: CrossTask) -> Markdown:
    """The circuit of the indirect object, or why there is none."""
    if not found.outside:
        return Markdown(f"No circuit of the indirect object: {found.left_out['ioi circuit']}")
    return Markdown(
        f"The circuit of the indirect object: {size(found.sets['ioi circuit'])}, found in "
        f"{found.outside['trials']} trials on {found.outside['prompts']} prompts."
    )


@needs("circuits")
def transfer_told(found: CrossTask) -> Markdown:
    """Whether circuits suffice for, and are needed by, other tasks and the controls."""
    share, held = _shares(found), list(found.circuits)

    def spans(mode: str) -> list[str]:
        own, other, on_controls = (
            [share[mode, f"{a} circuit", b] for a, b in pairs]
            for pairs in (
                zip(held, held, strict=True),
                permutations(held, 2),
                product(held, _controls(found)),
            )
        )
        return [_span(own), _span(other), _span(on_controls, "nothing (no control)")]

    kept, ablated, heads = map(spans, ("kept", "ablated", "heads"))
    beside = (
        "\n\n**A circuit from outside.** The indirect object's circuit keeps "
        f"{share['kept', 'ioi circuit', 'ioi']:z.0f}% of its own task, and "
        f"{_span(share['kept', 'ioi circuit', t] for t in held)} of the sequence tasks."
        if found.outside
        else ""
    )
    return Markdown(
        f"**Sufficiency.** On its own task a circuit keeps {kept[0]}, on another sequence task "
        f"{kept[1]}, on the controls {kept[2]}. Circuits were found on other prompts than these."
        f"\n\n**Necessity.** Without its circuit {ablated[0]} of a task is left, without another "
        f"task's circuit {ablated[1]}, and of the controls {ablated[2]}. Without the circuit's "
        f"heads alone: {heads[0]} of its own task, {heads[1]} of another, {heads[2]} of the "
        f"controls. {_particular(found)}{beside}"
    )


def _particular(found: CrossTask) -> str:
    """Whether the circuits' heads serve sequences rather than the controls."""
    share, spared, said = _shares(found), [], ""
    for control in _controls(found):
        kept, left = (
            sum(share[mode, f"{t} circuit", control] for t in found.circuits) / len(found.circuits)
            for mode in ("kept", "heads")
        )
        spared.append(left >= SPARED)
        said += (
            f"{TITLES[control]}: the circuits alone keep {kept:z.0f}% on average, and "
            f"{left:z.0f}% is left without their heads, so it is "
            f"{'mostly spared' if spared[-1] else 'harmed too'}. "
        )
    if not spared:
        return ""
    return said + (
        "The circuits' heads serve sequences rather than anything else that was tried."
        if all(spared)
        else "So the circuits' heads are **not** particular to sequences: part of what the tasks "
        "share is shared with tasks that hold no sequence."
    )


@needs("random")
def random_told(found: CrossTask) -> Markdown:
    """How often circuits do better, and ablating them does more harm, than random ones."""
    n_draws, held = found.random["draw"].nunique(), list(found.circuits)
    least = 1 / (n_draws + 1)

    def verdict(mode: str, kind: str, control: bool = False) -> str:
        cases = found.against_random.query("mode == @mode and kind == @kind and circuit != task")
        cases = cases[cases["task"].isin(held) != control]
        return f"{(cases['p'] < least + 1e-9).sum()} of {len(cases)}"

    return Markdown(
        f"Random circuits are scored on {found.n_random_prompts} prompts of each task, {n_draws} "
        f"of each kind; no p-value can be below {short(least)}. On *other* sequence tasks than its "
        "own, a circuit kept alone does better than every size-matched random circuit in "
        f"{verdict('kept', 'size')} cases, than every layer-matched one in "
        f"{verdict('kept', 'layer')}. With its heads ablated, it does more harm than every "
        f"size-matched one in {verdict('heads', 'size')} cases, than every layer-matched one in "
        f"{verdict('heads', 'layer')}. On the controls it keeps more than every layer-matched one "
        f"in {verdict('kept', 'layer', True)} cases, and does more harm in "
        f"{verdict('heads', 'layer', True)}."
    )


@needs("circuits")
def core_told(found: CrossTask) -> Markdown:
    """What the shared core does, and what each circuit's rest does."""
    share, held, controls = _shares(found), list(found.circuits), _controls(found)
    kept, left = (
        [_span((share[mode, "core", t] for t in tasks), "nothing") for tasks in (held, controls)]
        for mode in ("kept", "heads")
    )
    rests = [
        f"What {TITLES[t].lower()} adds ({size(found.sets[f'{t} rest'])}) keeps "
        f"{share['kept', f'{t} rest', t]:.0f}% of its task alone; without its heads "
        f"{share['heads', f'{t} rest', t]:.0f}% of the task is left, and "
        f"{_span(share['heads', f'{t} rest', o] for o in held if o != t)} of the others."
        for t in held
    ]
    return Markdown(
        f"The core ({size(found.sets['core'])}) keeps {kept[0]} of the sequence tasks alone, and "
        f"{kept[1]} of the controls; without its heads {left[0]} of the sequence tasks is left, "
        f"and {left[1]} of the controls. {' '.join(rests)}"
    )


@needs("text")
def text_told(found: CrossTask) -> Markdown:
    """The whole model's loss on plain text, and what p compares with."""
    return Markdown(
        f"Intact, the loss is {found.text_loss['mean']:.2f} nats per token "
        f"({found.text_loss['pieces']} pieces of text). Here p is the share of "
        f"{found.text_loss['draws']} layer-matched sets of random heads that cost as much, the "
        "set itself counted with them."
    )


@needs("roles")
def roles_told(found: CrossTask) -> Markdown:
    """Whether shared heads keep their role, and which roles other heads have in several tasks."""
    agreement, held = found.role_agreement, list(found.circuits)
    if not agreement:
        return Markdown("With one task there is nothing to compare.")
    several = found.roles[
        (found.roles["role"] != NONE) & ((found.roles[held] != "").sum(axis=1) > 1)
    ]
    alike = [
        f"{row['role']} ({'; '.join(f'{TITLES[t].lower()}: {row[t]}' for t in held if row[t])})"
        for _, row in several.iterrows()
    ]
    heads = found.shared["heads"]["shared"]
    roles = found.assigned[found.assigned["component"].isin(heads)]
    idle = (roles["role"] == NONE).groupby(roles["component"]).all().sum()
    outcome = (
        "more than chance"
        if agreement["p"] <= 0.05
        else "not more than chance can explain"
        if agreement["pairs"]
        else "with no shared head, nothing to test"
    )
    return Markdown(
        f"Shared heads and pairs of tasks with the same role: **{agreement['same']} of "
        f"{agreement['pairs']}**, where roles dealt out at random give "
        f"{agreement['expected']:.1f} "
        f"(p = {short(agreement['p'])}): {outcome}. No rule fits {idle} of the {len(heads)} shared "
        "heads in any task.\n\nHeads outside the core with the same role in different tasks: "
        f"{'; '.join(alike) or 'none'}."
    )


def numbers(found: CrossTask) -> dict[str, str]:
    """What the book's first page tells, by the name that it asks for."""
    heads, mlps, held = found.shared["heads"], found.shared["MLPs"], list(found.circuits)
    tasks = found.tasks.set_index("task").loc[held]
    share = _shares(found)
    others = [share["kept", f"{a} circuit", b] for a, b in permutations(held, 2)]

    def each(column: str, form: str) -> str:
        return enumerated(
            f"{value:{form}} ({TITLES[task].lower()})" for task, value in tasks[column].items()
        )

    return {
        "model-title": found.model["title"],
        "task-list": enumerated(TITLES[task].lower() for task in tasks.index),
        "n-prompts": str(found.n_prompts),
        "accuracy-list": each("accuracy", ".2f"),
        "logit-difference-list": each("mean", ".1f"),
        "circuit-size-list": enumerated(
            f"{size(found.sets[f'{t} circuit']).replace(', ', ' and ')} ({TITLES[t].lower()})"
            for t in held
        ),
        "n-shared-heads": str(len(heads["shared"])),
        "expected-shared-heads": f"{heads['expected']:.1f}",
        "p-shared-heads": short(heads["p"], 1),
        "layer-expected-shared-heads": f"{found.layer_matched['expected']:.1f}",
        "layer-p-shared-heads": short(found.layer_matched["p"], 1),
        "n-heads-total": str(heads["total"]),
        "shared-head-list": ", ".join(heads["shared"]) or "none",
        "n-shared-mlps": str(len(mlps["shared"])),
        "n-mlps-total": str(mlps["total"]),
        "expected-shared-mlps": f"{mlps['expected']:.1f}",
        "transfer-min": f"{min(others):z.0f}" if others else "none",
        "transfer-max": f"{max(others):z.0f}" if others else "none",
    }


def headline(found: CrossTask) -> Markdown:
    """The chapter's finding in a sentence or two."""
    heads, held = found.shared["heads"], list(found.circuits)
    if len(held) < 2:
        return in_short("Fewer than two tasks have a circuit, so there is nothing to share.")
    share = _shares(found)
    others = [share["kept", f"{a} circuit", b] for a, b in permutations(held, 2)]
    control = [share["heads", "core", c] for c in _controls(found) if ("heads", "core", c) in share]
    ours = [share["heads", "core", t] for t in held if ("heads", "core", t) in share]
    aside = (
        f" But without the shared heads the control tasks keep {_span(control)} of their lead, and "
        f"the sequence tasks {_span(ours)}: not all that is shared is about sequences."
        if control and ours and min(control) < 80  # percent
        else ""
    )
    return in_short(
        f"The circuits share {len(heads['shared'])} of {heads['total']} heads, where circuits with "
        f"as many heads in each layer would share {found.layer_matched['expected']:.1f} by chance. "
        f"One task's circuit does {_span(others)} of another task.{aside}"
    )
