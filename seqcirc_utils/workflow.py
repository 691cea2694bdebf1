"""The command line behind ``make``: run the stages over all tasks and build the book."""

import argparse
import contextlib
import errno
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from seqcirc_utils import models, progress, stages, store
from seqcirc_utils.errors import UserError, unknown

PER_TASK = [name for name, stage in stages.STAGES.items() if stage.per_task]
OVERALL = [name for name, stage in stages.STAGES.items() if not stage.per_task]


@dataclass(frozen=True)
class Plan:
    """A parameters file, read and checked: what is run, and where the results go."""

    file: Path
    model: str
    tasks: tuple[str, ...]
    values: Mapping[str, Any]

    @property
    def results(self) -> str:
        """The results' directory from the project's root: the parameters file's own name."""
        return f"results/{self.file.stem}"

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
        given = {name: value for name, value in given.items() if name in known}
        stages.check(stage, given)
        return given

    def directory(self, task: str | None = None) -> Path:
        """Return where the results of a task, or of all tasks, go."""
        return stages.directory(self.results, self.model, task)

    def jobs(self) -> list["Job"]:
        """Return every run of every stage, upstream first.

        Raises:
            UserError: for any parameter that any stage refuses.
        """
        jobs = [Job(self, stage, task) for stage in PER_TASK for task in self.tasks]
        return jobs + [Job(self, stage, None) for stage in OVERALL]


@dataclass(frozen=True)
class Job:
    """One run of a stage: its files and the fingerprint that says when to run it again."""

    plan: Plan
    stage: str
    task: str | None

    @property
    def name(self) -> str:
        """Stage and task, for people."""
        return f"{self.stage} {self.task or ''}".strip()

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

    def forget_if_stale(self) -> None:
        """Remove the record of a run made otherwise or damaged, so that Snakemake runs it again.

        To be called upstream first: what is kept is dated anew, in this order. Snakemake goes by
        dates, and a clock may have been wrong.
        """
        shared = stages.check(self.stage, self.plan.parameters(self.stage, self.task))
        if stages.is_current(self.stage, self.record.parent, shared):
            with contextlib.suppress(UserError):
                store.read_json(self.notebook)
                with contextlib.suppress(OSError):  # read-only: their dates will not change
                    os.utime(self.notebook)
                    os.utime(self.record)
                return
        stages.set_aside(self.record)


def read_plan(file: Path | str, model: str = "") -> Plan:
    """Read a parameters file; ``model`` takes the place of the file's.

    Raises:
        UserError: for a file that cannot be read, or a name that no stage declares.
    """
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
    declared = {name: stages.declared(name) for name in stages.STAGES}
    allowed = {"model", "tasks"} | {name for known in declared.values() for name in known}
    allowed -= {"task", "results"}
    for name in values:
        if name not in allowed:
            raise unknown(f"parameter in {file}", name, allowed)
    model = model or values.pop("model", models.DEFAULT)
    values.pop("model", None)
    tasks = values.pop("tasks", declared[OVERALL[0]]["tasks"].default)
    stages.check(OVERALL[0], {"tasks": tasks, "model": model})
    return Plan(file.resolve(), model, tuple(tasks), values)


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


def run(plan: Plan, cores: int | None = None, until: Sequence[str] = ()) -> None:
    """Run what is not up to date; with ``until`` only these stages and what they need.

    Raises:
        UserError: before any compute for bad parameters, afterwards if a part failed.
    """
    cores = (os.cpu_count() or 1) if cores is None else cores
    if cores < 1:
        raise UserError(f"--cores must be at least 1, not {cores}.")
    wanted = {stages.stage_named(name).name for name in until or stages.STAGES}
    for name in reversed(stages.STAGES):
        wanted |= set(stages.STAGES[name].needs) if name in wanted else set()
    jobs = [job for job in plan.jobs() if job.stage in wanted]
    for job in jobs:
        plan.parameters(job.stage, job.task)
    models.fetch(plan.model)
    for job in jobs:
        job.forget_if_stale()
    rules = [f"{job.stage}_{job.task or 'all'}" for job in jobs if job.stage in until]
    with progress.Watch(jobs):
        _run_snakemake(plan, cores, rules)


def book(plan: Plan, cores: int | None = None) -> Path:
    """Run what is not up to date, publish the notebooks and build the book.

    Raises:
        UserError: as :func:`run` does, or if the book cannot be built.
    """
    run(plan, cores)
    publish(plan)
    return _build(plan)


def _run_snakemake(plan: Plan, cores: int, until: Sequence[str] = ()) -> None:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(store.ROOT / "Snakefile")]
    command += ["--directory", str(store.ROOT), "--cores", str(cores), "--rerun-incomplete"]
    command += ["--nolock"]  # a killed run leaves Snakemake's own lock behind; see alone()
    command += ["--rerun-triggers", "mtime", "params", "input"]
    command += ["--quiet", "host", "reason", "progress"]
    command += ["--until", *until] if until else []
    # Snakemake reads a value as YAML: a ` #` in the path of the checkout would end it.
    file = os.path.relpath(plan.file, store.ROOT)
    command += ["--config", f"params_file={file}", f"model={plan.model}"]
    snakemake = subprocess.Popen(command, cwd=store.ROOT, close_fds=False)
    try:
        failed = snakemake.wait()
    except KeyboardInterrupt:
        # Ctrl-C has reached it as well; if only we were told, this ends it after the running stage.
        snakemake.terminate()
        snakemake.wait()
        raise
    if failed:
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
        if figure.name.startswith("."):  # half written by a process that was killed
            continue
        owner = figure.parent.parent.name
        if owner in plan.tasks:
            texts[target / "figures" / owner / figure.name] = figure.read_bytes()
        elif figure.parent.parent == plan.directory():
            texts[target / "figures" / figure.name] = figure.read_bytes()
    texts[target / "provenance.md"] = provenance(plan).encode()
    texts[target / "benchmarks.md"] = benchmarks().encode()
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
    try:
        executed = nbformat.read(job.notebook, as_version=4)
    except ValueError:
        raise UserError(f"{job.notebook} is damaged: run `make book`.") from None
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


@contextlib.contextmanager
def _whole_build(folder: Path) -> Iterator[None]:
    """Keep Sphinx, which goes by dates, from trusting half a build or passing over a change."""
    build = store.ROOT / "_build"
    marker = build / ".sources.json"  # what the last build that ended was made of
    sources = {str(f): models.sha256(f) for f in folder.rglob("*") if f.is_file()}
    try:
        before = store.read_json(marker)
        if marker.stat().st_mtime > time.time():
            raise UserError("built in the future")
        for file, digest in sources.items():
            if before.get(file) != digest:
                os.utime(file)
    except UserError:
        for part in ("html", ".doctrees"):
            shutil.rmtree(build / part, ignore_errors=True)
    marker.unlink(missing_ok=True)
    yield
    store.write_json(marker, sources)


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
    with _whole_build(folder):
        if subprocess.run(command, cwd=store.ROOT).returncode:
            raise UserError("the book was not built without warnings: see the lines above.")
    html = store.ROOT / "_build" / "html"
    pages = [re.sub(r"\.(md|ipynb|rst)$", "", f) for f in _files(yaml.safe_load(toc.read_bytes()))]
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
    common.add_argument("--params", default=str(store.ROOT / "params" / "laptop.yml"))
    common.add_argument("--model", default="", help="in place of the file's")
    whole = commands.add_parser("book", parents=[common], help="run everything, build the book")
    whole.add_argument("--cores", type=int, default=None, help="default: all")
    part = commands.add_parser("run", parents=[common], help="run stages, build no book")
    part.add_argument("--cores", type=int, default=None, help="default: all")
    part.add_argument("--until", nargs="+", default=[], metavar="STAGE", help="default: all")
    commands.add_parser("notebooks", help="run the committed notebooks again, in place")
    one = commands.add_parser("stage", parents=[common], help="run one stage")
    one.add_argument("name")
    one.add_argument("--task")
    one.add_argument("--output", required=True)
    commands.add_parser("publish", parents=[common], help="copy the results into the book")
    return parser


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold the checkout for one run; it is free again when the run and its Snakemake have ended.

    Raises:
        UserError: while another run holds it.
    """
    file = store.ROOT / ".snakemake" / "run.lock"
    file.parent.mkdir(exist_ok=True)
    with file.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"another run (begun by process {lock.read().strip()}) works in {store.ROOT}: wait "
                "until it has ended, or use a second checkout."
            ) from None
        except OSError:  # a file system without locks
            pass
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        # Snakemake gets it too: should this process be killed alone, it would work on.
        os.set_inheritable(lock.fileno(), True)
        yield


def _home() -> None:
    """Give the programs that we start, and the model's cache, a home they can write to."""
    home = os.path.expanduser("~")
    if not (os.path.isdir(home) and os.access(home, os.W_OK)):
        own = store.ROOT / ".snakemake" / "home"
        own.mkdir(parents=True, exist_ok=True)
        os.environ["HOME"] = str(own)
        print(f"{home} cannot be written to: caches are kept in {own}.", file=sys.stderr)


_REMEDIES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room on the disk")
_REMEDIES |= dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable")


def main(arguments: list[str]) -> int:
    """Run the command line; errors a user can mend are one line and status 2."""
    held = contextlib.ExitStack()
    try:
        given = _parser().parse_args(arguments)
        if given.command != "stage":
            held.enter_context(alone())
            _home()
        if given.command == "notebooks":
            notebooks()
            return 0
        plan = read_plan(given.params, given.model)
        if given.command == "book":
            book(plan, given.cores)
        elif given.command == "run":
            run(plan, given.cores, given.until)
        elif given.command == "stage":
            run_stage(plan, given.name, given.task, given.output)
        else:
            publish(plan)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"error: {error}: {_REMEDIES.get(error.errno, 'see to it')} and start again; what "
            "was finished is kept.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; what was finished is kept.", file=sys.stderr)
        return 130
    finally:
        held.close()
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` ends a run as Ctrl-C does
    sys.exit(main(sys.argv[1:]))
