"""How the findings on what the tasks share look: figures, and tables for people.

:mod:`seqcirc_utils.figures.cross_task_told` has the sentences.
"""

from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from seqcirc_utils import store
from seqcirc_utils.analyses.roles import HEAD_ROLES, MLP_ROLES
from seqcirc_utils.chapters.circuit_tasks import TITLES
from seqcirc_utils.chapters.cross_task import CrossTask
from seqcirc_utils.components import Component, by_kind
from seqcirc_utils.figures import circuit_map, common, forms
from seqcirc_utils.figures.common import needs
from seqcirc_utils.figures.profiles import facts
from seqcirc_utils.figures.style import NEUTRAL, closed, many, task_colours
from seqcirc_utils.statistics import Interval, short

LETTERS = circuit_map.letters([*HEAD_ROLES, *MLP_ROLES])
"""The letter of each role in the maps."""
RANDOM = {"size": ("random, size-matched", "x"), "layer": ("random, layer-matched", "+")}
"""Kinds of random circuit: label and marker."""


def size(names: Iterable[str]) -> str:
    """How many heads and MLPs a set of components has."""
    kinds = by_kind(set(map(Component.parse, names)))
    return f"{many(len(kinds['heads']), 'head')}, {many(len(kinds['MLPs']), 'MLP')}"


def label(name: str) -> str:
    """What a set of components is called in figures: ``months rest`` is “Months, rest”."""
    task, _, kind = name.rpartition(" ")
    ends = {"circuit": " circuit", "rest": ", rest"}
    return f"{TITLES[task]}{ends[kind]}" if task else f"shared {name}"


def _intervals(frame: pd.DataFrame, prefix: str = "") -> list[str]:
    columns = [f"{prefix}{bound}" for bound in ("mean", "low", "high")]
    return [str(Interval(*row)) for row in frame[columns].to_numpy()]


def _written(column: pd.Series, style: str) -> pd.Series:
    return column.map(f"{{:{style}}}".format).replace("nan", "–")


def tasks_table(found: CrossTask) -> pd.DataFrame:
    """How well the model does each task and control, and the size of the circuit."""
    circuits = [
        "– (control)" if control else size(found.sets[f"{task} circuit"])
        for task, control in zip(found.tasks["task"], found.tasks["control"], strict=True)
    ]
    table = {
        "task": found.tasks["task"].map(TITLES),
        "logit difference": _intervals(found.tasks),
        "right answer preferred": _written(found.tasks["preferred"], ".0%"),
        "circuit": circuits,
    }
    return pd.DataFrame(table).set_index("task")


def _roles(found: CrossTask) -> dict[str, dict[Component, str]]:
    return {
        task: dict(zip(map(Component.parse, rows["component"]), rows["role"], strict=True))
        for task, rows in found.assigned.groupby("task")
    }


@needs("circuits")
def shared_map(found: CrossTask) -> Figure:
    """All circuits in one map of the model, with letters for roles."""
    shape = found.model["layers"], found.model["heads"]
    return common.circuit_map(found.circuits, *shape, roles=_roles(found), role_letters=LETTERS)


@needs("circuits")
def interactive_map(found: CrossTask) -> HTML:
    """The same map to explore."""
    effects = found.importance.set_index(found.importance["component"].map(Component.parse))
    circuits = found.circuits
    page = circuit_map.interactive(
        circuits,
        found.model["layers"],
        found.model["heads"],
        task_colours(list(circuits)),
        titles=TITLES,
        roles=_roles(found),
        effects={task: effects[TITLES[task]].to_dict() for task in circuits},
        role_letters=LETTERS,
        links={task: f"{task}/05_component_roles.html" for task in circuits},
        facts=facts(found),
        explore="14_explore.html",
    )
    return HTML(page)


def save_maps(found: CrossTask, directory: Path) -> None:
    """Write both maps as ``shared_circuit.svg``, ``.narrow.svg``, ``.png`` and ``.html``.

    Nothing where there is no circuit.
    """
    if found.circuits:
        forms.save(shared_map(found), directory / "shared_circuit")
        store.write_text(directory / "shared_circuit.html", interactive_map(found).data)


@needs("circuits")
def overlap_table(found: CrossTask) -> pd.DataFrame:
    """What each pair of circuits shares, and all of them, against chance."""
    return _against_chance(found.overlap, "kind")


@needs("circuits")
def by_search_table(found: CrossTask) -> pd.DataFrame:
    """The heads that all circuits share, for each search, against chance."""
    table = _against_chance(found.by_search, "search")
    tasks = table.index.get_level_values("tasks")
    return table.droplevel("tasks") if tasks.nunique() == 1 else table


def _against_chance(frame: pd.DataFrame, first: str) -> pd.DataFrame:
    """Overlaps as they are shown, by the column ``first`` and the tasks."""
    table = {
        first: frame[first],
        "tasks": [
            " & ".join(TITLES[task].lower() for task in group.split(" & "))
            for group in frame["tasks"]
        ],
        "sizes": frame["sizes"],
        "shared": frame["shared"],
        "expected": frame["expected"].round(1),
        "p": frame["p"].map(short).replace("nan", "–"),
        "expected, layer-matched": _written(frame["layer_expected"], ".1f"),
        "p, layer-matched": frame["layer_p"].map(short).replace("nan", "–"),
        "Jaccard": frame["jaccard"].round(2),
    }
    return pd.DataFrame(table).set_index([first, "tasks"])


@needs("circuits")
def importance_map(found: CrossTask) -> Figure:
    """Rank correlation of the heads' importance between tasks."""
    correlation = found.correlation.set_index("task").rename_axis(None)
    return common.table_heatmap(correlation, "Spearman, heads", limit=1)


@needs("circuits")
def transfer_map(found: CrossTask) -> Figure:
    """Each circuit on each task and control."""
    return _transfer_heatmaps(found, [name for name in found.sets if name.endswith(" circuit")])


@needs("circuits")
def core_map(found: CrossTask) -> Figure:
    """The shared core and each circuit's rest on each task and control."""
    return _transfer_heatmaps(found, [name for name in found.sets if not name.endswith(" circuit")])


@forms.two_forms
def _transfer_heatmaps(found: CrossTask, sets: list[str]) -> Figure:
    """Sets of components (rows) on tasks (columns), a panel per mode, with intervals."""
    titles = {
        "kept": "kept alone, all else ablated",
        "ablated": "ablated, all else intact",
        "heads": "its heads alone ablated",
    }
    tasks = found.tasks["task"].tolist()
    shares = 100 * found.transfer.set_index(["mode", "set", "task"])
    texts = shares.apply(lambda c: f"{c['mean']:z.0f}\n[{c['low']:z.0f}, {c['high']:z.0f}]", axis=1)
    size = 1.15 * len(tasks) + 2.4, (0.42 * len(sets) + 0.4) * len(titles) + 0.8
    phone = (0.4 * len(sets) + 0.9) * len(titles) + 0.8
    figure, axes = forms.subplots(len(titles), size=size, phone=phone, sharex=True)
    for axis, (mode, title) in zip(axes, titles.items(), strict=True):
        cells, words = (part[mode].unstack().loc[sets, tasks] for part in (shares["mean"], texts))
        cells = cells.rename(label).rename_axis(index=None, columns=None)
        small = forms.either(7.5, 6.2)
        common.heatmap(axis, cells, words, 150, fontsize=small, label="%", extend="both")
        axis.set_title(title)
        ticks = np.arange(len(tasks)) + 0.5
        axis.set_xticks(
            ticks, [TITLES[t] for t in tasks], rotation=forms.either(20, 40), ha="right"
        )
        axis.tick_params(length=0)
        if found.tasks["control"].any():  # a line sets the controls apart
            axis.axvline(len(found.circuits), color="black", lw=2)
    return closed(figure)


@needs("random")
@forms.two_forms
def random_panels(found: CrossTask) -> Figure:
    """Each circuit beside random ones, on each task; kept alone above, heads ablated below."""
    circuits = list(found.circuits)
    panels = [(mode, circuit) for mode in ("kept", "heads") for circuit in circuits]
    size, phone = (2.6 * len(circuits) + 1.2, 5.6), 1.6 * len(panels) + 1.4
    figure, axes = forms.subplots(
        2, len(circuits), size=size, phone=phone, sharex=True, sharey=True
    )
    for axis, (mode, circuit) in zip(axes, panels, strict=True):
        _random_panel(axis, found, mode, circuit)
    for axis in axes[:: forms.either(len(circuits), 1)]:
        axis.set_ylabel("% of the whole model")
    dots = [("D", "the circuit", "black"), *((m, name, NEUTRAL) for name, m in RANDOM.values())]
    handles = [
        plt.Line2D([], [], marker=marker, ls="", color=colour, label=name, markersize=6)
        for marker, name, colour in dots
    ]
    figure.legend(handles=handles, ncols=forms.either(3, 1), loc="outside upper center", fontsize=9)
    return closed(figure)


def _random_panel(axis: Axes, found: CrossTask, mode: str, circuit: str) -> None:
    place = {task: i for i, task in enumerate(found.tasks["task"])}
    draws, against = (
        frame[(frame["mode"] == mode) & (frame["circuit"] == circuit)]
        for frame in (found.random, found.against_random)
    )
    for shift, (kind, (_, marker)) in zip((-0.17, 0.17), RANDOM.items(), strict=True):
        here = draws[draws["kind"] == kind]
        x, y = here["task"].map(place) + shift, 100 * here["mean"]
        axis.scatter(x, y, marker=marker, s=22, color=NEUTRAL, lw=1)
    own = against.drop_duplicates("task")
    colour = task_colours([circuit])[circuit]
    axis.scatter(own["task"].map(place), 100 * own["value"], marker="D", s=30, color=colour)
    axis.axhline(0, color=NEUTRAL, lw=0.8)
    axis.axhline(100, color=NEUTRAL, lw=0.8, ls="--")
    axis.set_title(f"{TITLES[circuit]}: {'kept alone' if mode == 'kept' else 'heads ablated'}")
    axis.set_xticks(range(len(place)), [TITLES[t] for t in place], rotation=40, ha="right")
    axis.set_xlim(-0.5, len(place) - 0.5)


@needs("random")
def random_table(found: CrossTask) -> pd.DataFrame:
    """The numbers behind :func:`random_panels`."""
    frame = found.against_random
    shown = frame.assign(
        circuit=frame["circuit"].map(TITLES),
        task=frame["task"].map(TITLES),
        value=_written(100 * frame["value"], "z.0f"),
        random=_written(100 * frame["random"], "z.0f"),
        p=frame["p"].round(3),
    )
    names = {"value": "circuit, %", "random": "random, mean %"}
    return shown.rename(columns=names).set_index(["mode", "circuit"])


@needs("text")
def text_table(found: CrossTask) -> pd.DataFrame:
    """What plain text loses without each set."""
    table = {
        "ablated": found.text["ablated"].map(label),
        "rise without it (nats per token)": _intervals(found.text),
        "… without its heads": _intervals(found.text, "heads_"),
        "… without random heads": _written(found.text["random"], ".2f"),
        "p": _written(found.text["p"], ".2g"),
    }
    return pd.DataFrame(table).set_index("ablated")


@needs("roles")
def shared_roles_table(found: CrossTask) -> pd.DataFrame | Markdown:
    """The role of each shared head in each task, and how sure the least sure one is."""
    heads = found.shared["heads"]["shared"]
    if not found.role_agreement or not heads:
        return Markdown("No shared heads with roles.")
    by_head = found.assigned.pivot(index="component", columns="task").loc[heads]
    table = by_head["role"][list(found.circuits)].rename(columns=TITLES)
    table["sure, at least"] = _written(by_head["confidence"].min(axis=1), ".0%")
    return table.rename_axis(index="head", columns=None)


@needs("roles")
def role_holders_table(found: CrossTask) -> pd.DataFrame:
    """Who has each role: shared heads, and each task's others."""
    names = TITLES | {"shared": "shared, in every task", "changing": "shared, in some"}
    return found.roles.rename(columns=names).set_index("role")
