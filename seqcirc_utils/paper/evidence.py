"""What was published, and what the runs of one model found: the evidence for claims and faults."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, wraps
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqcirc_utils import store
from seqcirc_utils.chapters.circuit_discovery import CircuitDiscovery
from seqcirc_utils.chapters.component_roles import ComponentRoles
from seqcirc_utils.chapters.cross_task import CrossTask
from seqcirc_utils.chapters.findings import Findings
from seqcirc_utils.chapters.generalisation import Generalisation
from seqcirc_utils.chapters.logit_attribution import LogitAttribution
from seqcirc_utils.chapters.patching import Patching
from seqcirc_utils.chapters.prediction_and_editing import PredictionAndEditing
from seqcirc_utils.chapters.task_construction import TaskConstruction
from seqcirc_utils.circuits.circuit import Circuit
from seqcirc_utils.components import Component
from seqcirc_utils.errors import UserError
from seqcirc_utils.models import zoo
from seqcirc_utils.paper.estimates import Estimate
from seqcirc_utils.prompts.sequences import TASKS as _ALL_TASKS

TASKS = ("digits", "number_words", "months")
"""The paper's tasks; three figures in a row are theirs, in this order."""
CIRCUITS = tuple(f"{_ALL_TASKS[task].title.lower()} circuit" for task in TASKS)
"""Their circuits, as the results beyond the tasks name them."""
NOT_TESTED = "not testable here"
OUTDATED = "was made by another version of the project, or its files have changed: run it again"
"""What is said of another model's results that no longer hold."""
CHAPTERS: tuple[type[Findings], ...] = (
    *(TaskConstruction, LogitAttribution, Patching, CircuitDiscovery),
    *(ComponentRoles, CrossTask, Generalisation, PredictionAndEditing),
)
TABLES = {file: (kind, field) for kind in CHAPTERS for file, field in kind.tables().items()}
"""What the chapters found, by the name of its file: the class, and the field that is the table."""


def published() -> dict[str, Any]:
    """What was published: ``provenance``, ``claims`` and ``faults``."""
    return store.read_json(Path(__file__).parent / "published.json")


def _once(method: Callable) -> Callable:
    """Let a method of evidence look up the same thing once: rules ask for it head by head."""

    @wraps(method)
    def looked_up(self: "Evidence", *asked: str, **named: str) -> Any:
        key = (method.__name__, asked, *sorted(named.items()))
        if key not in self._found:
            before = set(self.read)
            self.read.clear()
            try:
                value = method(self, *asked, **named)
                self._found[key] = value, set(self.read)
            finally:
                self.read.update(before)
        value, read = self._found[key]
        self.read.update(read)
        return value

    return looked_up


@dataclass(frozen=True)
class Evidence:
    """The result files of one model, read when asked for.

    Every method raises :class:`UserError` for what is missing; what needs it is then not tested.

    Attributes:
        directory: ``<results>/<model>``.
        problems: Stage and task (``None``: all tasks) to why there are no results.
        read: The runs whose results were asked for so far, as ``stage`` or ``stage task``.
    """

    directory: Path
    problems: Mapping[tuple[str, str | None], str] = field(default_factory=dict)
    read: set[str] = field(default_factory=set, repr=False, compare=False)
    _arrays: dict[Path, dict[str, np.ndarray]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _found: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def model(self) -> dict[str, Any]:
        """The facts of the model, as its runs recorded them; nothing if there is none."""
        for task in TASKS:
            with contextlib.suppress(UserError):  # a task that was skipped: no model was loaded
                return self.data("03_patching.run.json", "model", task=task)
        return {}

    @property
    def named(self) -> bool:
        """Whether this is the paper's model, so that heads can be asked for by name."""
        return self.model.get("zoo") == zoo.PAPER

    def of_gpt2(self) -> "Evidence | None":
        """Results of the paper's model that lie beside these, if there are any.

        Those that came from its own source go before those of what looks like a copy.
        """
        places = [self] if self.named else map(Evidence, sorted(self.directory.parent.glob("*")))
        found = [e for e in places if e.named]
        return min(found, key=lambda e: e.model["known_by"] != "source", default=None)

    def path(self, name: str, task: str | None = None) -> Path:
        """The path of a result file, which exists."""
        stage = name.split(".")[0]
        where = self.directory / task if task else self.directory
        for key in ((stage, task), (stage, None)):
            if key in self.problems:
                raise UserError(f"{_of(stage, task)} has no results: {self.problems[key]}")
        if not (where / name).is_file():
            raise UserError(f"{_of(name, task)} does not exist.")
        self.read.add(f"{stage} {task}" if task else stage)
        return where / name

    @_once
    def table(self, name: str, task: str | None = None) -> pd.DataFrame:
        """A chapter's table by the name of its file, with the columns and types of its field."""
        kind, field = TABLES[name]
        found = kind.one(self.path(name, task).parent, field)
        if found.empty:
            raise UserError(f"{_of(name, task)} has no rows: it does not apply to this model.")
        return found

    def data(self, name: str, *keys: str, task: str | None = None) -> Any:
        """What a JSON file holds under some keys, one inside the other."""
        found = store.read_json(self.path(name, task))
        for key in keys:
            if not isinstance(found, dict) or key not in found:
                raise UserError(f"{_of(name, task)} has no entry {' / '.join(map(str, keys))}.")
            found = found[key]
        return found

    @_once
    def circuit(self, task: str, published: bool = False) -> Circuit:
        """A task's circuit, of the ranked search or of the published sweep."""
        suffix = "circuit.published.json" if published else "circuit.json"
        return Circuit.load(self.path(f"04_circuit_discovery.{suffix}", task))

    def heads(self, task: str, published: bool = False) -> set[Component]:
        """The heads of a task's circuit."""
        return {c for c in self.circuit(task, published).components if c.head is not None}

    def shared(self) -> list[str]:
        """The heads that the circuits of all tasks hold."""
        return list(map(str, sorted(set.intersection(*(self.heads(t) for t in TASKS)))))

    def ablation(self, task: str) -> pd.Series:
        """What ablating each component alone does to the whole model, in points."""
        table = self.table("03_patching.csv", task)
        return 100 * table.set_index("component")["ablation"]

    def shape(self) -> tuple[int, int]:
        """Layers, and heads in each."""
        names = self.ablation(TASKS[0]).index
        layers = sum(c.startswith("mlp") for c in names)
        return layers, (len(names) - layers) // layers

    def changes(self, task: str) -> pd.Series:
        """What removing each component from the task's circuit does to it, in points."""
        table = self.table("04_circuit_discovery.csv", task)
        return 100 * table.set_index("component")["change"]

    @_once
    def n_prompts(self, task: str) -> int:
        """How many prompts the effects of a task rest on."""
        return self.ablations(task)[1].shape[1]

    def ablations(self, task: str) -> tuple[list[str], np.ndarray]:
        """The components, and numbers whose means are what ablating each does ``[component, n]``.

        In points of the whole model's mean logit difference. Where a component was ablated on all
        prompts, they are what that does to each of them.
        """
        names = self.table("03_patching.csv", task)["component"].to_list()
        path = self.path("03_patching.npz", task)
        if path not in self._arrays:
            self._arrays[path] = store.read_npz(path)
        values = self._arrays[path].get("values")
        if values is None or values.shape[:1] != (len(names),):
            raise UserError(f"{_of('03_patching.npz', task)} has no ablation of each component.")
        return names, 100 * values

    def cost(self, task: str, component: str) -> Estimate:
        """What the task's circuit loses without a component of it, in points."""
        name = "04_circuit_discovery.csv"
        row = self._row(name, task, component=component)
        bounds = (-100 * row[k] for k in ("change", "high", "low"))
        return Estimate.of(bounds, self.n_prompts(task))

    def does(self, circuit: str, task: str) -> Estimate:
        """What one set of components, kept alone, does of a task, in percent."""
        row = self._row("06_cross_task.csv", None, mode="kept", set=circuit, task=task)
        bounds = (100 * row[k] for k in ("mean", "low", "high"))
        return Estimate.of(bounds, self.n_prompts(task))

    def looks(self, task: str, head: str, query: str, *keys: str) -> Estimate:
        """A head's attention from one group of tokens to some groups together, in percent."""
        found = Estimate(0, 0, 0, self.n_prompts(task))
        for key in keys:
            name = "05_component_roles.attention.csv"
            row = self._row(name, task, component=head, query=query, key=key)
            part = Estimate.of((100 * row[k] for k in ("mean", "low", "high")), found.n)
            found = found.plus(part)
        return found

    def in_random_order(self, task: str, head: str) -> Estimate:
        """A head's attention from member to members in random order, in percent."""
        row = self._row("05_component_roles.csv", task, component=head)
        columns = (f"members_to_members_random{end}" for end in ("", "_low", "_high"))
        return Estimate.of((100 * row[c] for c in columns), self.n_prompts(task))

    def spread(self, task: str, column: str) -> float:
        """What evenly spread attention would give in a column of attention, in percent."""
        return 100 * self.data("05_component_roles.json", "spread", column, task=task)

    def planned(self, subject: str, sets: Sequence[str]) -> pd.DataFrame:
        """The planned tests of mean-ablating sets of heads on one subject of the paper."""
        name = "07_generalisation.planned.csv"
        table = self.table(name)
        rows = table[(table["kind"] == "mean") & (table["subject"] == subject)]
        rows = rows[rows["set"].isin(sets)]
        if rows.empty:
            raise UserError(f"nothing of “{subject}” could be asked of the model.")
        return rows

    def _row(self, name: str, of: str | None, /, **where: str) -> pd.Series:
        """The first row of a table, of a task, where columns have these values."""
        table = self.table(name, of)
        fits = np.all([table[key].to_numpy() == value for key, value in where.items()], axis=0)
        if not fits.any():
            wanted = ", ".join(f"{k} {v}" for k, v in where.items())
            raise UserError(f"{_of(name, of)} has no row with {wanted}.")
        return table.iloc[fits.argmax()]

    def kept(self, circuit: str, task: str) -> float:
        """What one set of components, kept alone, does of a task, in percent."""
        table = self.table("06_cross_task.csv")
        return 100 * cell(table, "mean", "06_cross_task.csv", mode="kept", set=circuit, task=task)

    @_once
    def roles(self, task: str) -> pd.DataFrame:
        """The table of roles, by component."""
        table = self.table("05_component_roles.csv", task)
        if (table["role"] == "").any():
            raise UserError(f"{_of('05_component_roles', task)} cannot tell all roles here.")
        return table.set_index("component")

    def seen(self, task: str, column: str) -> pd.Series:
        """One attention column of the table of roles, by component, in percent."""
        table = self.table("05_component_roles.csv", task)
        return 100 * table.set_index("component")[column]

    def attention(self, task: str, query: str, key: str) -> pd.Series:
        """Attention from one group of tokens to another, by head, in percent.

        Only heads of the circuit or with a role were measured.
        """
        name = "05_component_roles.attention.csv"
        table = self.table(name, task)
        rows = table[(table["query"] == query) & (table["key"] == key)]
        if rows.empty:
            raise UserError(f"{_of(name, task)} has no attention from {query} to {key}.")
        return 100 * rows.set_index("component")["mean"]

    @_once
    def ov(self, task: str, score: str, read: str = "own", words: str = "members") -> pd.DataFrame:
        """OV scores of all heads, by component: columns ``top5``, ``low``, ``high``, ``p`` …"""
        name = "05_component_roles.ov.csv"
        table = self.table(name, task)
        rows = table[(table["score"] == score) & (table["input"] == read)]
        rows = rows[rows["words"] == words].set_index("component")
        if rows.empty:
            raise UserError(f"{_of(name, task)} has no {score} scores of {words} on input {read}.")
        return rows

    def effects(self, probes: Sequence[str], sets: Sequence[str]) -> pd.DataFrame:
        """What mean-ablating sets of heads does to probes that the model can do.

        Mean ablation is what the circuits were found with; only rows beside random sets count.
        """
        table = self.table("07_generalisation.csv")
        table = table[(table["kind"] == "mean") & table["p"].notna()]
        rows = table[table["probe"].isin(probes) & table["set"].isin(sets)]
        if rows.empty:
            raise UserError(f"no probe was tested against random heads: {self.inability(probes)}.")
        return rows

    def inability(self, probes: Sequence[str]) -> str:
        """Why probes were not used."""
        table = self.table("07_generalisation.probes.csv")
        rows = table[table["probe"].isin(probes)].set_index("probe")
        why = rows["reason"].mask(rows["used"], "no ablation measured")
        why = why.reindex(probes).fillna("not asked")
        return "; ".join(f"{probe}: {reason.rstrip('.')}" for probe, reason in why.items())

    def switches(self, task: str) -> tuple[np.ndarray, np.ndarray]:
        """By block, the share of prompts with the last (an earlier) member on top, then the answer.

        "On top" is of the logit lens among the task's members; "then" is after the block.
        """
        name = "02_logit_attribution.npz"
        arrays = store.read_npz(self.path(name, task))
        if "answer" not in arrays or not len(arrays.get("lens_end", ())):
            raise UserError(f"{_of(name, task)} has no lens at the end.")
        top, answer = arrays["lens_end"].argmax(-1), arrays["answer"]  # [block + 1, n], [n]
        arrived = top[1:] == answer
        return (
            (arrived & (top[:-1] == answer - 1)).mean(1),
            (arrived & (top[:-1] < answer)).mean(1),
        )


def _of(name: str, task: str | None) -> str:
    return f"{name} of {task}" if task else name


def cell(table: pd.DataFrame, column: str, name: str, **where: Any) -> float:
    """The one value of a column in the first row where other columns have these values."""
    rows = table
    for key, value in where.items():
        rows = rows[rows[key] == value]
    if rows.empty:
        wanted = ", ".join(f"{k} {v}" for k, v in where.items())
        raise UserError(f"{name} has no row with {wanted}.")
    return float(rows[column].iloc[0])
