"""One run of a stage, from inside its notebook: its inputs, its files, and how they were made.

Each result has a ``<stage>.run.json`` beside it that tells which parameters and which sources made
it; results made otherwise are never mixed in.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock

from seqcirc_utils import store
from seqcirc_utils.errors import CannotDo, UserError, unknown
from seqcirc_utils.workflow.fingerprint import fingerprint, versions
from seqcirc_utils.workflow.parameters import check, declared
from seqcirc_utils.workflow.records import is_current, set_aside, skipped
from seqcirc_utils.workflow.stages import STAGES, directory, stage_named

_IPYTHON = {"In", "Out", "exit", "quit", "get_ipython", "open", "display"}


@dataclass
class Run:
    """One run of a stage inside its notebook: where files go and what is recorded."""

    stage: str
    parameters: dict[str, Any]
    started: float = field(default_factory=time.monotonic)
    begun: int = field(default_factory=lambda: len(store.WRITTEN))
    inputs: dict[str, str] = field(default_factory=dict)
    library: str = ""

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

    def input(self, stage: str, suffix: str, task: str | None = None) -> Path:
        """Return the path of another stage's file, made first when it is missing or outdated.

        Raises:
            UserError: for a stage that this one does not need, a missing task, a stage that
                fails, or one that does not make this file.
            CannotDo: if the stage was skipped, since the model cannot do the task.
        """
        from seqcirc_utils.workflow import execution  # which itself records a run that was skipped

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
        path, record = where / f"{stage}.{suffix}", where / f"{stage}.run.json"
        where.mkdir(parents=True, exist_ok=True)
        with FileLock(where / f".{stage}.lock"):
            current = is_current(stage, where, shared)
            if not (current and (path.is_file() or skipped(record))):
                print(
                    f"{stage} of {task or 'all tasks'} has no results for these parameters and "
                    "this version: running it first, which may take some minutes.",
                    file=sys.stderr,
                    flush=True,
                )
                execution.execute(stage, shared, where / f"{stage}.ipynb")
            reason = skipped(record)
            if not (reason or path.is_file()):
                raise UserError(f"{self.stage}: {stage} makes no file {path.name}.")
            source = os.path.relpath(record, self.directory)
            try:
                self.inputs[source] = store.read_json(record)["library"]
            except UserError:  # another process has begun to make the same results again
                self.inputs[source] = fingerprint(stage, check(stage, shared))
        if reason:
            raise CannotDo(reason)
        return path

    def finish(self, **facts: Any) -> Path:
        """Write ``<stage>.run.json``: how the results were made; call it last.

        Args:
            facts: Further entries; dataclasses (such as ``model=model.facts``) become tables.
        """
        facts = {
            name: dataclasses.asdict(fact) if dataclasses.is_dataclass(fact) else fact
            for name, fact in facts.items()
        }
        own = {
            "stage": self.stage,
            "task": self.parameters.get("task"),
            "parameters": self.parameters,
            "seed": self.parameters.get("seed"),
            "seconds": round(time.monotonic() - self.started, 1),
            "cpu_seconds": round(time.process_time(), 1),  # what other programs do matters less
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "library": self.library,
            "inputs": self.inputs,
            # As they were written: one that another process, or a fault, changes is found out.
            "files": {
                os.path.relpath(path, self.directory): digest
                for path, digest in store.WRITTEN[self.begun :]
                if path.suffix != ".ipynb"
            },
        }
        return store.write_json(self.path("run.json"), facts | own)


def begin(stage: str, namespace: Mapping[str, Any]) -> Run:
    """Check the parameters in a notebook's namespace, seed torch, and return the run.

    Raises:
        UserError: for a name that the notebook does not declare, or as :func:`check` does.
    """
    import torch
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    given = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and name not in _IPYTHON
        and not isinstance(value, ModuleType)
        and not callable(value)
    }
    parameters = check(stage, given)
    disable_progress_bars()
    logging.disable_progress_bar()
    torch.manual_seed(parameters.get("seed", 0))
    run = Run(stage, parameters, library=fingerprint(stage, parameters))
    set_aside(run.path("run.json"))  # until finish(), its results are half made
    return run
