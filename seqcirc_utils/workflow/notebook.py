"""One run of a stage, from inside its notebook: its findings, its inputs, and how they were made.

A notebook asks for what its chapter found and draws it. What was found before, by the same code, of
the same model with the same parameters, is read and not computed again: a figure may change and be
drawn anew within seconds.
"""

import ast
import dataclasses
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from filelock import FileLock

from seqcirc_utils import store
from seqcirc_utils.chapters.findings import Findings
from seqcirc_utils.errors import CannotDo, UserError, unknown
from seqcirc_utils.workflow import execution, records
from seqcirc_utils.workflow.fingerprint import drawing, fingerprint
from seqcirc_utils.workflow.parameters import check, declared
from seqcirc_utils.workflow.stages import STAGES, directory, stage_named

F = TypeVar("F", bound=Findings)
_IPYTHON = {"In", "Out", "exit", "quit", "get_ipython", "open", "display"}
_INJECTED = "# Parameters"
"""How the cell begins that papermill puts in."""


@dataclass
class Run:
    """One run of a stage inside its notebook: where files go and what is recorded.

    Attributes:
        stage: The stage.
        parameters: All of its parameters.
        record: What an earlier run recorded, where its findings still hold; empty otherwise.
        sources: Fingerprints of what it is made with, as that was when it began.
        inputs: The records of other runs that were read, and the fingerprint of each.
    """

    stage: str
    parameters: dict[str, Any]
    record: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    begun: int = field(default_factory=lambda: len(store.WRITTEN))
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """Where this stage's files go."""
        return self._directory(self.parameters.get("task"))

    def _directory(self, task: str | None) -> Path:
        return directory(self.parameters["results"], self.parameters["model"], task)

    def path(self, suffix: str, task: str | None = None) -> Path:
        """Return the path of one of this stage's files, as ``<directory>/<stage>.<suffix>``.

        A stage of all tasks may give a task, to put a file into that task's directory.
        """
        where = self._directory(task) if task else self.directory
        return where / f"{self.stage}.{suffix}"

    def findings(self, kind: type[F], anew: bool = False) -> F:
        """Return what the chapter found: measured now, or read if it was found before.

        Args:
            kind: The class of the findings; its ``measure`` is what is computed.
            anew: Measure in any case: for what also depends on other models' results.

        Raises:
            UserError: as ``measure`` does.
            CannotDo: where the model cannot do the task.
        """
        from seqcirc_utils.chapters.setting import Setting  # with torch

        if self.record and not anew:
            print(f"Found before ({self.record['timestamp']}): read.", file=sys.stderr)
        else:
            import torch

            self.record = {}
            records.set_aside(self.path("run.json"))  # until finish(), its results are half made
            torch.manual_seed(self.parameters.get("seed", 0))
            own = self.directory / self.stage
            setting = Setting(
                self.parameters, own, self._read, made=self._made, current=records.holds
            )
            kind.measure(setting).save(self.directory)
            model = vars(setting).get("model")
            self.facts = {"model": dataclasses.asdict(model.facts)} if model else {}
        return kind.load(self.directory)

    def _read(self, kind: type[F], task: str | None = None) -> F:
        """Return another chapter's findings, made first when they are missing or outdated."""
        return kind.load(self._made(kind.stage, task))

    def _made(self, stage: str, task: str | None) -> Path:
        """Return the directory of another stage's results, made first where that is needed."""
        needs = stage_named(self.stage).needs
        if stage not in needs:
            raise unknown(f"input of {self.stage}", stage, needs)
        task = task or self.parameters.get("task")
        if STAGES[stage].per_task and not task:
            raise UserError(f"{self.stage}: say the results of which task of {stage} are wanted.")
        known = declared(stage)
        shared = {k: v for k, v in self.parameters.items() if k in known}
        if STAGES[stage].per_task:
            shared["task"] = task
        where = self._directory(task if STAGES[stage].per_task else None)
        record = where / f"{stage}.run.json"
        where.mkdir(parents=True, exist_ok=True)
        with FileLock(where / f".{stage}.lock"):
            if not records.is_current(stage, record, shared):
                print(
                    f"{stage} of {task or 'all tasks'} has no results for these parameters and "
                    "this version: running it first, which may take some minutes.",
                    file=sys.stderr,
                    flush=True,
                )
                execution.execute(stage, shared, where / f"{stage}.ipynb")
            reason = records.skipped(record)
            source = records.relative(record, self.directory)
            try:
                self.inputs[source] = store.read_json(record)["library"]
            except UserError:  # another process has begun to make the same results again
                self.inputs[source] = fingerprint(stage, check(stage, shared))
        if reason:
            raise CannotDo(reason)
        return where

    def input(self, stage: str, suffix: str, task: str | None = None) -> Path:
        """Return the path of another stage's file, made first when it is missing or outdated.

        Raises:
            UserError: for a stage that this one does not need, a missing task, a stage that
                fails, or one that does not make this file.
            CannotDo: if the stage was skipped, since the model cannot do the task.
        """
        path = self._made(stage, task) / f"{stage}.{suffix}"
        if not path.is_file():
            raise UserError(f"{self.stage}: {stage} makes no file {path.name}.")
        return path

    def finish(self, **facts: Any) -> Path:
        """Write ``<stage>.run.json``: how the results were made; call it last.

        Args:
            facts: Further entries; dataclasses (such as ``model=model.facts``) become tables.
        """
        written = {
            records.relative(path, self.directory): digest
            for path, digest in store.WRITTEN[self.begun :]
            if path.suffix != ".ipynb"
        }
        told = {
            k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in facts.items()
        }
        # How findings were made is told by the run that made them.
        told |= (
            self.record
            or {
                "seconds": round(time.monotonic() - self.started, 1),
                "cpu_seconds": round(time.process_time(), 1),  # what other programs do matters less
                "memory_mb": round(_most_memory()),
                "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
                "inputs": self.inputs,
            }
            | self.facts
        )
        # As they were written: one that another process, or a fault, changes is found out.
        told |= {"files": self.record.get("files", {}) | written} | self.sources
        return records.write(self.stage, self.parameters, self.directory, told)


def _most_memory() -> float:
    """The most memory that this process has held so far, in MB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on a Mac bytes
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


def begin(stage: str, namespace: Mapping[str, Any]) -> Run:
    """Check the parameters in a notebook's namespace and return the run.

    Raises:
        UserError: for a name that the notebook does not declare, or as :func:`check` does.
    """
    known = declared(stage)
    given = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and name not in _IPYTHON
        and not isinstance(value, ModuleType)
        and not callable(value)
    }
    if "In" in namespace:  # a kernel may have run other cells before, or these
        asked = _assigned(namespace["In"])
        given = {name: value for name, value in given.items() if name in known or name in asked}
    parameters = check(stage, given)
    sources = {"library": fingerprint(stage, parameters), "drawing": drawing(stage)}
    run = Run(stage, parameters, sources=sources)
    record = run.path("run.json")
    for kept in (record, records.last(record)):
        if records.is_current(stage, kept, parameters) and not records.skipped(kept):
            run.record = store.read_json(kept)
            break
    if not run.record:
        records.set_aside(record)
    elif record.is_file():  # what is only drawn anew stays: others may be reading it
        records.keep(record)
    return run


def _assigned(cells: Sequence[str]) -> set[str]:
    """The names that were set as parameters last: by the notebook's own cell, and papermill's."""
    found: dict[bool, set[str]] = {}  # whether papermill's: its names
    for cell in cells:
        try:
            steps = ast.parse(cell).body
        except SyntaxError:  # a magic
            continue
        injected = cell.startswith(_INJECTED)
        if steps and all(isinstance(s, ast.Assign if injected else ast.AnnAssign) for s in steps):
            found = found if injected else {}  # its own cell comes first
            names = [n for n in ast.walk(ast.parse(cell)) if isinstance(n, ast.Name)]
            found[injected] = {n.id for n in names if isinstance(n.ctx, ast.Store)}
    return set().union(*found.values())
