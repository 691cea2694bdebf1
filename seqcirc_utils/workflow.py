"""The command line behind ``make``: run the stages over all tasks and build the book."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from seqcirc_utils import models, progress, stages, store
from seqcirc_utils.errors import UserError, unknown

PER_TASK = [name for name, stage in stages.STAGES.items() if stage.per_task]
OVERALL = [name for name, stage in stages.STAGES.items() if not stage.per_task]
DISCOVERY = "04_circuit_discovery"
# What makes a parameters file a sweep: lists, and what they are when only some are given.
SWEEP = {"models": [models.DEFAULT], "seeds": [0], "stages": [DISCOVERY]}


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
    def results(self) -> str:
        """The results' directory from the project's root: the parameters file's own name."""
        where = f"results/{self.file.stem}"
        return where if self.seed is None else f"{where}/seed{self.seed}"

    def parameters(self, stage: str, task: str | None = None) -> dict[str, Any]:
        """Return what one run of a stage is given: those parameters that it declares.

        Raises:
            UserError: as :func:`stages.check` does.
        """
        given = dict(self.values) | {
            "model": self.model,
            "tasks": list(self.tasks),
            "task": task,
            "results": self.results,
        }
        known = stages.declared(stage)
        given |= {} if self.seed is None else {"seed": self.seed}
        given = {name: value for name, value in given.items() if name in known}
        stages.check(stage, given)
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
        given = [self.stage, "--params", str(self.plan.file), "--model", self.plan.model]
        given += ["--task", self.task] if self.task else []
        given += [] if self.plan.seed is None else ["--seed", str(self.plan.seed)]
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
        return [
            Job(self.plan, need, task).record
            for need in stages.STAGES[self.stage].needs
            for task in (own if stages.STAGES[need].per_task else [None])
        ]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the stage's sources and parameters."""
        given = self.plan.parameters(self.stage, self.task)
        return stages.fingerprint(self.stage, stages.check(self.stage, given))

    def is_current(self) -> bool:
        """Tell whether the results are there, made with these parameters and sources."""
        if not self.record.is_file():
            return False
        shared = stages.check(self.stage, self.plan.parameters(self.stage, self.task))
        return stages.is_current(self.stage, self.record.parent, shared)

    def forget_if_stale(self) -> None:
        """Remove the record of a run made otherwise, so that Snakemake runs it again."""
        if not self.is_current():
            self.record.unlink(missing_ok=True)


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
        return [_plan(Path(file), model or values.pop("model", models.DEFAULT), values)]
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
    allowed |= {name for stage in stages.STAGES for name in stages.declared(stage)}
    allowed -= {"task", "results"}
    for name in values:
        if name not in allowed:
            raise unknown(f"parameter in {file}", name, allowed)
    return values


def _plan(file: Path, model: str, values: Mapping[str, Any], *sweep: Any) -> Plan:
    values = {name: value for name, value in values.items() if name != "model"}
    tasks = values.pop("tasks", stages.declared(OVERALL[0])["tasks"].default)
    stages.check(OVERALL[0], {"tasks": tasks, "model": model})
    return Plan(file.resolve(), model, tuple(tasks), values, *sweep)


def run_stage(plan: Plan, stage: str, task: str | None, output: Path | str) -> Path:
    """Run one stage and write its executed notebook.

    Raises:
        UserError: as :func:`stages.execute` does, or for a task that is missing or not wanted.
    """
    per_task = stages.stage_named(stage).per_task
    if per_task and not task:
        raise UserError(f"{stage} runs once per task: give --task.")
    if task and not per_task:
        raise UserError(f"{stage} runs once for all tasks: leave --task out.")
    return stages.execute(stage, plan.parameters(stage, task), output)


def run(plan: Plan, cores: int | None = None, until: Sequence[str] = (), profile: str = "") -> None:
    """Run what is not up to date; with ``until`` only these stages and what they need.

    Args:
        plan: What to run.
        cores: How many cores to use at most; as many as the profile says by default.
        until: Stages.
        profile: Directory of a Snakemake profile: where jobs run. ``profiles/local`` by default.

    Raises:
        UserError: before any compute for bad parameters, afterwards if a part failed.
    """
    jobs = _ready([plan], cores, until, profile)
    with progress.Watch(jobs):
        _run_snakemake([plan], cores, until, profile)


def book(plan: Plan, cores: int | None = None, profile: str = "") -> Path:
    """Run what is not up to date, publish the notebooks and build the book.

    Raises:
        UserError: as :func:`run` does, or if the book cannot be built.
    """
    run(plan, cores, profile=profile)
    publish(plan)
    return _build(plan)


def sweep(plans: Sequence[Plan], cores: int | None = None, profile: str = "") -> Path:
    """Run what is not up to date of all plans, as one graph, and write the summary.

    A job that fails stops only those that need it; the summary tells what is missing.

    Raises:
        UserError: as :func:`run` does.
    """
    from seqcirc_utils import summary

    jobs = _ready(plans, cores, (), profile)
    try:
        with progress.Watch(jobs):
            _run_snakemake(plans, cores, (), profile, "--keep-going")
    finally:
        page = summary.write(plans)
        print(f"The summary is in {page}")
    return page


def _ready(
    plans: Sequence[Plan], cores: int | None, until: Sequence[str], profile: str
) -> list[Job]:
    """Check everything, fetch the models and return the jobs, those that are outdated undone."""
    if cores is not None and cores < 1:
        raise UserError(f"--cores must be at least 1, not {cores}.")
    _profile(profile)
    wanted = with_needs(until or stages.STAGES)
    jobs = [job for plan in plans for job in plan.jobs() if job.stage in wanted]
    for job in jobs:
        job.plan.parameters(job.stage, job.task)
    for model in dict.fromkeys(plan.model for plan in plans):
        models.fetch(model)
    for job in jobs:
        job.forget_if_stale()
    return jobs


def _profile(name: str) -> tuple[Path, str]:
    """Return a profile's directory and executor, or say what is missing before anything is run."""
    path = Path(name) if name else store.ROOT / "profiles" / "local"
    try:
        values = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8")) or {}
        executor = str(values.get("executor", "local"))
    except FileNotFoundError:
        there = sorted(store.ROOT.glob("profiles/*/config.yaml"))
        there = ", ".join(str(p.parent.relative_to(store.ROOT)) for p in there)
        raise UserError(f"{path} has no config.yaml: there are the profiles {there}.") from None
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path / 'config.yaml'} cannot be read as YAML: {said}") from None
    own = f"snakemake_executor_plugin_{executor.replace('-', '_')}"
    if executor not in ("local", "dryrun", "touch") and find_spec(own) is None:
        raise UserError(
            f"{path} wants the executor {executor!r}, which is not installed: "
            f"pip install {own.replace('_', '-')}."
        )
    if executor == "slurm" and shutil.which("sbatch") is None:
        raise UserError(f"{path} wants SLURM, but there is no sbatch: use it on a login node.")
    return path, executor


def _run_snakemake(
    plans: Sequence[Plan],
    cores: int | None,
    until: Sequence[str] = (),
    profile: str = "",
    *more: str,
) -> None:
    names = {plan.model for plan in plans}
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(store.ROOT / "Snakefile")]
    command += ["--directory", str(store.ROOT), "--rerun-incomplete"]
    where, executor = _profile(profile)
    command += ["--workflow-profile", str(where.resolve())]
    if executor == "local":  # no more jobs at once than the memory holds
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**6
        command += ["--resources", f"mem_mb={memory}"]
    command += ["--cores", str(cores)] if cores else []
    command += ["--rerun-triggers", "mtime", "params", "input"]
    command += ["--quiet", "host", "reason", "progress"]
    command += ["--until", *until] if until else []
    command += ["--config", f"params_file={plans[0].file}"]
    command += [f"model={names.pop() if len(names) == 1 else ''}", *more]
    if subprocess.run(command, cwd=store.ROOT).returncode:
        raise UserError("not every stage ran: the lines above name the failed one and its log.")


def publish(plan: Plan) -> list[Path]:
    """Copy executed notebooks, figures and provenance into ``book/runs``; return what is there.

    Files that would not change are not written, and files of other runs are removed.

    Raises:
        UserError: for a notebook that is missing or holds an error.
    """
    target = store.ROOT / "book" / "runs"
    texts: dict[Path, bytes] = {}
    for job in plan.jobs():
        place = target / (job.task or "") / f"{job.stage}.ipynb"
        texts[place] = _published(job).encode()
    figures = [*plan.directory().rglob("figures/*.svg"), *plan.directory().rglob("figures/*.png")]
    for figure in figures:
        owner = figure.parent.parent.name
        if owner in plan.tasks:
            texts[target / "figures" / owner / figure.name] = figure.read_bytes()
        elif figure.parent.parent == plan.directory():
            texts[target / "figures" / figure.name] = figure.read_bytes()
    texts[target / "provenance.md"] = provenance(plan).encode()
    texts[target / "benchmarks.md"] = benchmarks().encode()
    texts[target / "costs.md"] = costs(plan).encode()
    toc = _toc(plan)
    if toc:
        texts[target / "_toc.yml"] = toc.encode()
    for path in sorted(target.rglob("*"), reverse=True):
        if path.is_file() and path not in texts:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    for path, content in texts.items():
        if not path.is_file() or path.read_bytes() != content:
            with store.writing(path) as temporary:
                temporary.write_bytes(content)
    return sorted(texts)


def _published(job: Job) -> str:
    import nbformat

    if not job.notebook.is_file():
        raise UserError(f"{job.notebook} does not exist: run `make book`.")
    executed = nbformat.read(job.notebook, as_version=4)
    outputs = [o for cell in executed.cells for o in cell.get("outputs", [])]
    tags = [tag for cell in executed.cells for tag in cell.metadata.get("tags", [])]
    if any(o.output_type == "error" for o in outputs) or any("error" in tag for tag in tags):
        raise UserError(f"{job.notebook} holds an error: delete it and run `make book` again.")
    if job.task:
        title = stages._tasks().TASKS[job.task].title
        for cell in executed.cells:
            if cell.cell_type == "markdown" and re.search(r"(?m)^# ", cell.source):
                cell.source = re.sub(
                    r"(?m)^# (.*)$", lambda m: f"# {title}: {m[1]}", cell.source, count=1
                )
                break
    return nbformat.writes(stages.clean(executed)) + "\n"


def provenance(plan: Plan) -> str:
    """Return the page that tells how all results were made.

    Raises:
        UserError: for a run whose record is missing.
    """
    records = [store.read_json(job.record) for job in plan.jobs()]
    lines = ["# Provenance", "", "How every result of this book was made."]
    lines += ["", "## Runs", "", "| stage | task | seconds | prompts | seed |"]
    lines += ["|---|---|---:|---:|---:|"]
    for record in records:
        prompts = record.get("n_prompts", record["parameters"].get("n_prompts", ""))
        cells = [record["stage"], record["task"] or "all", record["seconds"], prompts]
        lines.append(_row([*cells, record["seed"]]))
    facts = next((r["model"] for r in records if isinstance(r.get("model"), dict)), {})
    lines += _table("Model", {"name": plan.model} | facts)
    lines += _table("Versions", records[0]["versions"])
    for record in records:
        heading = f"Parameters of {record['stage']}"
        if record["task"]:
            heading += f", {record['task']}"
        lines += _table(heading, record["parameters"])
    return "\n".join(lines) + "\n"


def costs(plan: Plan, n_models: int = 10, n_tasks: int = 10, n_seeds: int = 20) -> str:
    """Return tables of what each stage took, and of what a sweep would take at this rate."""
    import pandas as pd

    rows = []
    for job in plan.jobs():
        # Written by Snakemake, which watches the job from outside: starting it counts.
        file = job.record.with_name(f"{job.stage}.cost.tsv")
        if file.is_file():
            taken = pd.read_csv(file, sep="\t", na_values="-").iloc[0]
            files = [*file.parent.glob(f"{job.stage}.*")]
            files += file.parent.glob("circuit*.json") if job.stage == DISCOVERY else []
            # All tasks together: as if the time grew with their number only.
            more = 1 if job.task else n_tasks / len(plan.tasks)
            row = {"stage": job.stage, "minutes": taken["s"] / 60, "memory": taken["max_rss"] / 1e3}
            row |= {"disk": sum(path.stat().st_size for path in files) / 1e6}
            row |= {"core_hours": max(taken["s"], taken["cpu_time"]) / 3600 * more}
            rows.append(row | {"jobs": n_models * n_seeds * (n_tasks if job.task else 1)})
    if not rows:
        return "These results were made without `make book`: nothing was measured.\n"
    by_stage = pd.DataFrame(rows).groupby("stage")
    mean, most = by_stage.mean(), by_stage["memory"].max()
    lines = ["", "| stage | jobs | minutes | GB of memory, at most | MB on disk |"]
    lines += ["|---|---:|---:|---:|---:|"]
    for name, row in mean.iterrows():
        cells = [name, by_stage.size()[name], f"{row['minutes']:.1f}", f"{most[name]:.1f}"]
        lines.append(_row([*cells, f"{row['disk']:.1f}"]))
    lines += ["", f"{n_models} models × {n_tasks} tasks × {n_seeds} seeds:", ""]
    lines += ["| stages | jobs | core hours | hours on 100 cores | GB on disk |"]
    lines += ["|---|---:|---:|---:|---:|"]
    for title, names in [
        ("up to the circuits", with_needs([DISCOVERY])),
        ("all", tuple(stages.STAGES)),
    ]:
        part = mean[mean.index.isin(names)]
        hours, disk = ((part["jobs"] * part[name]).sum() for name in ("core_hours", "disk"))
        cells = [title, f"{part['jobs'].sum():,.0f}", f"{hours:,.0f}", f"{hours / 100:,.1f}"]
        lines.append(_row([*cells, f"{disk / 1e3:,.1f}"]))
    return "\n".join(lines) + "\n"


def benchmarks() -> str:
    """Return the tables of the benchmarks, from what `make bench` wrote last."""
    file = store.ROOT / "benchmarks" / "results.json"
    if not file.is_file():
        return "None were run: `make bench` does.\n"
    found = store.read_json(file)
    lines = []
    for key in ("searches", "growth", "memory"):
        rows = found.pop(key)
        if not rows:
            continue
        # One column per case: there are more measures than cases.
        lines += ["", f"## {key.capitalize()}", ""]
        lines += ["| measure |" + " case |" * len(rows), "|---|" + "---:|" * len(rows)]
        lines += [_row([name, *(_short(row[name]) for row in rows)]) for name in rows[0]]
    lines += _table("Machine", found["machine"] | found["versions"])
    return "\n".join(lines) + "\n"


def _short(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _table(heading: str, entries: Mapping[str, Any]) -> list[str]:
    rows = [_row([name, value]) for name, value in entries.items()]
    return ["", f"## {heading}", "", "| name | value |", "|---|---|", *rows]


def _row(cells: list[Any]) -> str:
    texts = [str(c) for c in cells]
    first = texts[0].replace("|", r"\|")
    rest = [f"`{text}`".replace("|", r"\|") if text else "" for text in texts[1:]]
    return f"| {' | '.join([first, *rest])} |"


def _committed_toc() -> dict[str, Any]:
    path = store.ROOT / "book" / "_toc.yml"
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it from git.") from None


def _toc(plan: Plan) -> str:
    """Return the table of contents for the plan's tasks; nothing if the committed one serves."""
    toc = _committed_toc()
    tasks, parts, place, pattern = [], [], None, None
    for part in toc.get("parts", []):
        files = [chapter.get("file", "") for chapter in part.get("chapters", [])]
        found = [re.fullmatch(r"runs/([^/]+)/[^/]+", file) for file in files]
        if files and all(found):
            tasks.append(found[0][1])
            if pattern is None:
                place, pattern = len(parts), part
        else:
            parts.append(part)
    if pattern is None or tuple(tasks) == plan.tasks:
        return ""
    known = stages._tasks().TASKS
    parts[place:place] = [
        pattern
        | {
            "caption": known[task].title,
            "chapters": [
                chapter | {"file": re.sub(r"^runs/[^/]+/", f"runs/{task}/", chapter["file"])}
                for chapter in pattern["chapters"]
            ],
        }
        for task in plan.tasks
    ]
    return yaml.safe_dump(toc | {"parts": parts}, sort_keys=False, allow_unicode=True)


def _files(toc: Any) -> list[str]:
    if isinstance(toc, dict):
        own = [toc[key] for key in ("root", "file") if key in toc]
        return own + [file for value in toc.values() for file in _files(value)]
    return [file for item in toc for file in _files(item)] if isinstance(toc, list) else []


def _build(plan: Plan) -> Path:
    folder = store.ROOT / "book"
    own = folder / "runs" / "_toc.yml"
    toc = own if own.is_file() else folder / "_toc.yml"
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    command += [
        str(folder),
        "-n",
        "-W",
        "--keep-going",
        "--path-output",
        str(store.ROOT),
        "--toc",
        str(toc),
    ]
    if (store.ROOT / "_config.yml").is_file():
        command += ["--config", str(store.ROOT / "_config.yml")]
    done = subprocess.run(command, cwd=store.ROOT)
    if done.returncode:
        raise UserError("the book was not built without warnings: see the lines above.")
    html = store.ROOT / "_build" / "html"
    pages = [re.sub(r"\.(md|ipynb|rst)$", "", f) for f in _files(yaml.safe_load(toc.read_text()))]
    missing = [page for page in pages if not (html / f"{page}.html").is_file()]
    if missing:
        raise UserError(f"the built book lacks the pages {', '.join(missing)}.")
    index = html / "index.html"
    print(f"The book is in {index}: open it, or run make serve")
    return index


def notebooks() -> list[Path]:
    """Run the committed notebooks at their defaults, in order and in place, outputs cleaned.

    Raises:
        UserError: if one fails; it and those after it then stay as they were.
    """
    done = []
    for stage in stages.STAGES:
        values = stages.check(stage, {})
        models.fetch(values["model"])
        where = stages.directory(values["results"], values["model"], values.get("task"))
        print(f"Running {stage} at its defaults.", file=sys.stderr)
        output = stages.execute(stage, {}, where / f"{stage}.ipynb")
        with store.writing(stages.notebook(stage)) as temporary:
            shutil.copyfile(output, temporary)
        done.append(stages.notebook(stage))
    return done


def _help() -> str:
    lines = ["stages and their parameters (a parameters file sets them by name):"]
    for name, stage in stages.STAGES.items():
        lines.append(f"  {name} ({'per task' if stage.per_task else 'all tasks'})")
        try:
            known = stages.declared(name).values()
        except UserError as error:
            lines.append(f"    {error}")
            continue
        for p in known:
            lines.append(f"    {p.name}: {p.type.__name__} = {p.default!r}  {p.help}")
    return "\n".join(lines)


_PROGRAM = "python -m seqcirc_utils.workflow"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message} (--help tells more).")

    def format_help(self) -> str:
        return super().format_help() + ("\n" + _help() + "\n" if self.prog == _PROGRAM else "")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=_PROGRAM, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--params", help="default: params/laptop.yml; of a sweep, params/sweep.yml")
    common.add_argument("--model", default="", help="in place of the file's; of a sweep, one of it")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--cores", type=int, default=None, help="default: all")
    where.add_argument("--profile", default="", help="where jobs run (default: profiles/local)")
    both = [common, where]
    commands.add_parser("book", parents=both, help="run everything, build the book")
    part = commands.add_parser("run", parents=both, help="run stages, build no book")
    part.add_argument("--until", nargs="+", default=[], metavar="STAGE", help="default: all")
    commands.add_parser("sweep", parents=both, help="run a file of models, tasks and seeds")
    commands.add_parser("notebooks", help="run the committed notebooks again, in place")
    one = commands.add_parser("stage", parents=[common], help="run one stage")
    one.add_argument("name")
    one.add_argument("--task")
    one.add_argument("--seed", type=int, help="of a sweep, one of its seeds")
    one.add_argument("--output", required=True)
    commands.add_parser("publish", parents=[common], help="copy the results into the book")
    return parser


def main(arguments: list[str]) -> int:
    """Run the command line; errors a user can mend are one line and status 2."""
    try:
        given = _parser().parse_args(arguments)
        if given.command == "notebooks":
            notebooks()
            return 0
        name = "sweep.yml" if given.command == "sweep" else "laptop.yml"
        file = given.params or store.ROOT / "params" / name
        if given.command == "sweep":
            plans = read_plans(file, given.model)
            if plans[0].seed is None:
                raise UserError(f"{file} is no sweep: it lists none of {', '.join(SWEEP)}.")
            sweep(plans, given.cores, given.profile)
            return 0
        plan = read_plan(file, given.model, getattr(given, "seed", None))
        if given.command == "book":
            book(plan, given.cores, given.profile)
        elif given.command == "run":
            run(plan, given.cores, given.until, given.profile)
        elif given.command == "stage":
            run_stage(plan, given.name, given.task, given.output)
        else:
            publish(plan)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; what was finished is kept.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
