"""What is to be run: a parameters file, read and checked, as plans and their jobs."""

import contextlib
import hashlib
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import yaml

from seqcirc_utils import store
from seqcirc_utils.errors import UserError, unknown
from seqcirc_utils.models import zoo
from seqcirc_utils.workflow import records, stages
from seqcirc_utils.workflow.fingerprint import drawing, fingerprint
from seqcirc_utils.workflow.parameters import check, declared

PER_TASK = [name for name, stage in stages.STAGES.items() if stage.per_task]
OVERALL = [name for name, stage in stages.STAGES.items() if not stage.per_task]
DISCOVERY = "04_circuit_discovery"
# What makes a parameters file a sweep: lists, and what they are when only some are given.
SWEEP: dict[str, list[Any]] = {"models": [zoo.DEFAULT], "seeds": [0], "stages": [DISCOVERY]}


@dataclass(frozen=True)
class Plan:
    """A parameters file, read and checked: what is run, and where the results go.

    A sweep has one plan for each model and seed; ``seed`` is None in all others.
    """

    file: Path
    model: str
    tasks: tuple[str, ...]
    values: Mapping[str, Any]
    seed: int | None = None
    wanted: tuple[str, ...] = tuple(stages.STAGES)

    @property
    def name(self) -> str:
        """The parameters file's own name; with other characters than ``\\w.-``, a hash as well."""
        stem, plain = self.file.stem, store.plain(self.file.stem)
        same = stem == plain and stem.strip(".")
        return stem if same else f"{plain}-{hashlib.sha256(stem.encode()).hexdigest()[:8]}"

    @property
    def results(self) -> str:
        """The results' directory from the project's root: named as the parameters file is."""
        where = f"results/{self.name}"
        return where if self.seed is None else f"{where}/seed{self.seed}"

    def parameters(self, stage: str, task: str | None = None) -> dict[str, Any]:
        """Return what one run of a stage is given: those parameters that it declares.

        Raises:
            UserError: as :func:`seqcirc_utils.workflow.parameters.check` does.
        """
        given = dict(self.values) | {
            "model": self.model,
            "tasks": list(self.tasks),
            "task": task,
            "results": self.results,
        }
        known = declared(stage)
        given |= {} if self.seed is None else {"seed": self.seed}
        given = {name: value for name, value in given.items() if name in known}
        check(stage, given)
        return given

    def directory(self, task: str | None = None) -> Path:
        """Return where the results of a task, or of all tasks, go."""
        return stages.directory(self.results, self.model, task)

    def jobs(self) -> list["Job"]:
        """Return every run of every wanted stage, upstream first.

        Raises:
            UserError: for any parameter that any stage refuses.
        """
        jobs = [Job(self, stage, task) for stage in PER_TASK for task in self.tasks]
        jobs += [Job(self, stage, None) for stage in OVERALL]
        return [job for job in jobs if job.stage in self.wanted]


@dataclass(frozen=True)
class Job:
    """One run of a stage: its files and the fingerprint that says when to run it again."""

    plan: Plan
    stage: str
    task: str | None

    @property
    def name(self) -> str:
        """Stage and task, in a sweep model and seed too, for people."""
        own = [self.stage, self.task] if self.task else [self.stage]
        sweep = [] if self.plan.seed is None else [self.plan.model, f"seed {self.plan.seed}"]
        return " ".join(own + sweep)

    @property
    def arguments(self) -> str:
        """What `workflow stage` is given to make this run, quoted for the shell."""
        # With `=`: a value that begins with `-` is none of the options.
        given = [self.stage, f"--params={self.plan.file}", f"--model={self.plan.model}"]
        given += [f"--task={self.task}"] if self.task else []
        given += [] if self.plan.seed is None else [f"--seed={self.plan.seed}"]
        return shlex.join(given)

    @property
    def notebook(self) -> Path:
        """The executed notebook."""
        return self.plan.directory(self.task) / f"{self.stage}.ipynb"

    @property
    def record(self) -> Path:
        """The run's ``run.json``."""
        return self.plan.directory(self.task) / f"{self.stage}.run.json"

    @property
    def inputs(self) -> list[Path]:
        """The records of the runs whose results this one reads."""
        own = [self.task] if self.task else self.plan.tasks
        return [Job(self.plan, *one).record for one in stages.upstream(self.stage, own)]

    @property
    def fingerprint(self) -> str:
        """What the run is made of: sources and parameters, its own and of all that it reads."""
        given = self.plan.parameters(self.stage, self.task)
        own = [fingerprint(self.stage, check(self.stage, given)), drawing(self.stage)]
        tasks = [self.task] if self.task else self.plan.tasks
        for stage, task in stages.upstream(self.stage, tasks):
            own.append(fingerprint(stage, check(stage, self.plan.parameters(stage, task))))
        return hashlib.sha256(" ".join(own).encode()).hexdigest()

    def is_current(self) -> bool:
        """Tell whether the results are there, made with these parameters and sources."""
        if not self.record.is_file():
            return False
        shared = check(self.stage, self.plan.parameters(self.stage, self.task))
        return records.is_current(self.stage, self.record, shared)

    def forget_if_stale(self) -> None:
        """Remove the record of a run made otherwise or damaged, so that Snakemake runs it again.

        To be called upstream first: what is kept is dated anew, in this order. Snakemake goes by
        dates, and a clock may have been wrong.
        """
        if self.is_current() and records.is_drawn(self.stage, self.record):
            with contextlib.suppress(UserError):
                store.read_json(self.notebook)
                with contextlib.suppress(OSError):  # read-only: their dates will not change
                    os.utime(self.notebook)
                    os.utime(self.record)
                return
        records.set_aside(self.record)


def to_config(file: str, model: str) -> str:
    """Return what Snakemake's ``--config`` is given to read these plans.

    Snakemake reads a value as a number or YAML, strips quotes off it, and puts it into shell
    commands for a cluster without proper quotes: nothing here means anything to any of them.
    """
    return "plan=" + urlencode({"params_file": file, "model": model})


def from_config(config: Mapping[str, Any], typed: Sequence[str]) -> list[Plan]:
    """Read the plans that ``--config`` names: see :func:`to_config`, or by hand.

    Args:
        config: Snakemake's: ``params_file`` and ``model``, or ``plan``.
        typed: The entries of ``--config`` as they were typed, which ``config`` no longer tells.

    Raises:
        UserError: for another name, a value that is no text, or as :func:`read_plans` does.
    """
    given = dict(config) | dict(entry.split("=", 1) for entry in typed)
    if "plan" in given:
        given |= parse_qsl(given.pop("plan"), keep_blank_values=True)
    for name, value in given.items():
        if name not in ("params_file", "model"):
            raise unknown("name in --config", name, ("params_file", "model"))
        if not isinstance(value, str):
            raise UserError(f"{name} in the configuration is {value!r}: put it in quotes.")
    return read_plans(given.get("params_file", "params/laptop.yml"), given.get("model", ""))


def read_plan(file: Path | str, model: str = "", seed: int | None = None) -> Plan:
    """Read a parameters file; ``model`` takes the place of the file's.

    Of a sweep's file, return the plan of this model and seed.

    Raises:
        UserError: for a file that cannot be read, or a name that no stage declares.
    """
    plans = [plan for plan in read_plans(file, model) if plan.seed == seed]
    if len(plans) == 1:
        return plans[0]
    if plans or seed is None:
        raise UserError(f"{file} is a sweep: run `make sweep`, or name a model and a seed of it.")
    raise UserError(f"{file} has no seed {seed}.")


def read_plans(file: Path | str, model: str = "") -> list[Plan]:
    """Read a parameters file: one plan, or for a sweep one for each of its models and seeds.

    ``model`` takes the place of the file's; of a sweep's models it chooses one.

    Raises:
        UserError: for a file that cannot be read, or a name that no stage declares.
    """
    values = _read(file)
    lists = {name: values.pop(name) for name in list(values) if name in SWEEP}
    if not lists:
        return [_plan(Path(file), model or values.pop("model", zoo.DEFAULT), values)]
    for name, found in (SWEEP | lists).items():
        if not isinstance(found, list) or not found or len(set(map(str, found))) < len(found):
            raise UserError(f"{name} in {file} must be a list that names no two things alike.")
    for name in ("model", "seed"):
        if name in values:
            raise UserError(f"{file} is a sweep: it lists {name}s, and `{name}` has no place.")
    lists = SWEEP | lists
    if model and model not in lists["models"]:
        raise unknown(f"model of {file}", model, lists["models"])
    wanted = with_needs(lists["stages"])
    chosen = [model] if model else lists["models"]
    return [_plan(Path(file), m, values, seed, wanted) for m in chosen for seed in lists["seeds"]]


def with_needs(names: Iterable[str]) -> tuple[str, ...]:
    """Return these stages and all that they need, upstream first.

    Raises:
        UserError: for an unknown stage.
    """
    wanted = {stages.stage_named(name).name for name in names}
    for name in reversed(stages.STAGES):
        wanted |= set(stages.STAGES[name].needs) if name in wanted else set()
    return tuple(name for name in stages.STAGES if name in wanted)


def _read(file: Path | str) -> dict[str, Any]:
    file = Path(file)
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = sorted(str(p.relative_to(store.ROOT)) for p in store.ROOT.glob("params/*.yml"))
        raise UserError(f"{file} does not exist: there are {', '.join(there)}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{file} cannot be read as YAML: {said}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} must hold lines of the form `name: value`.")
    allowed = {"model", "tasks", *SWEEP}
    allowed |= {name for stage in stages.STAGES for name in declared(stage)}
    allowed -= {"task", "results"}
    for name in values:
        if name not in allowed:
            raise unknown(f"parameter in {file}", name, allowed)
    return values


def _plan(file: Path, model: str, values: Mapping[str, Any], *sweep: Any) -> Plan:
    values = {name: value for name, value in values.items() if name != "model"}
    tasks = values.pop("tasks", declared(OVERALL[0])["tasks"].default)
    check(OVERALL[0], {"tasks": tasks, "model": model})
    if not str(file.resolve()).isprintable():
        raise UserError(f"{str(file)!r} holds a line break or its like: rename it.")
    return Plan(file.resolve(), model, tuple(tasks), values, *sweep)
