"""The one door: run the stages over all tasks, build and print the book, fetch a model."""

import argparse
import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from seqcirc_utils import store
from seqcirc_utils.errors import UserError
from seqcirc_utils.models import fetching, terms, zoo
from seqcirc_utils.publishing import building, pages, pdf, release, shelf
from seqcirc_utils.workflow import (
    costs,
    execution,
    parameters,
    progress,
    records,
    snakemake,
    stages,
    surroundings,
)
from seqcirc_utils.workflow.planning import SWEEP, Job, Plan, read_plan, read_plans, with_needs


def run_stage(plan: Plan, stage: str, task: str | None, output: Path | str) -> Path:
    """Run one stage and write its executed notebook.

    Raises:
        UserError: as :func:`execution.execute` does, or for a task that is missing or not wanted.
    """
    per_task = stages.stage_named(stage).per_task
    if per_task and not task:
        raise UserError(f"{stage} runs once per task: give --task.")
    if task and not per_task:
        raise UserError(f"{stage} runs once for all tasks: leave --task out.")
    return execution.execute(stage, plan.parameters(stage, task), output)


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
    print(costs.told(jobs), file=sys.stderr)
    with progress.Watch(jobs):
        snakemake.run([plan], cores, until, profile)
    for job in jobs:
        if reason := records.skipped(job.record):
            print(f"skipped: {job.name}: {reason}", file=sys.stderr)


def book(plan: Plan, cores: int | None = None, profile: str = "") -> Path:
    """Run what is not up to date, publish the notebooks and build the book.

    Raises:
        UserError: as :func:`run` does, or if the book cannot be built.
    """
    run(plan, cores, profile=profile)
    pages.publish(plan)
    return building.build(plan)


def book_of(folder: Path) -> Path:
    """Build the book of a release's results; no model is run.

    Raises:
        UserError: for a folder that is no release, or does not fit this version; see
            :func:`seqcirc_utils.publishing.release.read`.
    """
    plan = release.read(folder)
    pages.publish(plan)
    return building.build(plan)


def models(plan: Plan, cores: int | None = None, profile: str = "") -> Path:
    """Make the books of all models that are compared, side by side, and the page before them.

    Each model's chapters are run first, then those that read the paper's model's results where they
    lie beside, then those that compare all models. A model that fails takes none of the others with
    it: the page before the books says why it is missing.

    Args:
        plan: Its ``compare`` lists the models; the same parameters for all.
        cores: As :func:`run` takes it.
        profile: As :func:`run` takes it.

    Raises:
        UserError: if no model's book could be made.
    """
    compared = parameters.check(stages.ACROSS, plan.parameters(stages.ACROSS))["compare"]
    names = [plan.model, *compared]
    known = stages.STAGES.values()
    beside = [stage.name for stage in known if stage.beside_paper]
    alone = [stage.name for stage in known if not (stage.beside_paper or stage.across)]
    plans, failed = [dataclasses.replace(plan, model=m) for m in dict.fromkeys(names)], {}

    def attempt(one: Plan, do: Callable[[], Any]) -> None:
        try:
            if one.model not in failed:
                do()
        except UserError as error:
            failed[one.model] = str(error)
            print(f"{one.model}: {error}", file=sys.stderr)

    for some in (alone, beside):
        for one in plans:
            attempt(one, partial(run, one, cores, some, profile))
    for one in reversed(plans):  # so that _build/html holds the plan's own in the end
        attempt(one, partial(_shelved, one, cores, profile))
    page = shelf.write(plans, failed)
    if len(failed) == len(plans):
        raise UserError(f"no model's book was made: {'; '.join(failed.values())}")
    print(f"The books are in {page}")
    return page


def _shelved(plan: Plan, cores: int | None, profile: str) -> None:
    book(plan, cores, profile)
    shelf.put(plan)


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


def sweep(plans: Sequence[Plan], cores: int | None = None, profile: str = "") -> Path:
    """Run what is not up to date of all plans, as one graph, and write the summary.

    A job that fails stops only those that need it; the summary tells what is missing.

    Raises:
        UserError: as :func:`run` does.
    """
    from seqcirc_utils.publishing import summary  # with torch

    jobs = _ready(plans, cores, (), profile)
    try:
        with progress.Watch(jobs):
            snakemake.run(plans, cores, (), profile, "--keep-going")
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
    snakemake.read_profile(profile)
    jobs = _checked(plans, until)
    for model in dict.fromkeys(plan.model for plan in plans):
        directory, prepend = fetching.fetch(model), plans[0].values.get("prepend", "auto")
        if prepend != "auto":
            from seqcirc_utils.models import loading  # with torch

            loading.front(model, directory, prepend)
    for job in jobs:
        job.forget_if_stale()
    return jobs


def _checked(plans: Sequence[Plan], until: Sequence[str] = ()) -> list[Job]:
    """The jobs of plans whose parameters all stages can use."""
    wanted = with_needs(until or stages.STAGES)
    jobs = [job for plan in plans for job in plan.jobs() if job.stage in wanted]
    for job in jobs:
        job.plan.parameters(job.stage, job.task)
    return jobs


def notebooks() -> list[Path]:
    """Run the committed notebooks at their defaults, in order and in place, outputs cleaned.

    Raises:
        UserError: if one fails; it and those after it then stay as they were.
    """
    done = []
    for stage in stages.STAGES:
        values = parameters.check(stage, {})
        fetching.fetch(values["model"])
        where = stages.directory(values["results"], values["model"], values.get("task"))
        print(f"Running {stage} at its defaults.", file=sys.stderr)
        output = execution.execute(stage, {}, where / f"{stage}.ipynb")
        with store.writing(stages.notebook(stage)) as temporary:
            shutil.copyfile(output, temporary)
        done.append(stages.notebook(stage))
    return done


def _help() -> str:
    lines = ["stages and their parameters (a parameters file sets them by name):"]
    for name, stage in stages.STAGES.items():
        lines.append(f"  {name} ({'per task' if stage.per_task else 'all tasks'})")
        try:
            known = parameters.declared(name).values()
        except UserError as error:
            lines.append(f"    {error}")
            continue
        for p in known:
            lines.append(f"    {p.name}: {p.type.__name__} = {p.default!r}  {p.help}")
    return "\n".join(lines)


_PROGRAM = "python -m seqcirc_utils"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help tells more).")

    def format_help(self) -> str:
        return super().format_help() + ("\n" + _help() + "\n" if self.prog == _PROGRAM else "")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=_PROGRAM, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    common = _Parser(add_help=False)
    common.add_argument("--params", help="default: params/laptop.yml; of a sweep, params/sweep.yml")
    common.add_argument("--model", default="", help="in place of the file's; of a sweep, one of it")
    where = _Parser(add_help=False)
    where.add_argument("--cores", type=int, default=None, help="default: all")
    where.add_argument("--profile", default="", help="where jobs run (default: profiles/local)")
    both = [common, where]

    def add(name: str, do: Callable, *parents: _Parser, alone: bool = True, **said: Any) -> _Parser:
        command = commands.add_parser(name, parents=parents, **said)
        command.set_defaults(do=do, alone=alone)
        return command

    whole = add("book", _book, *both, help="run everything, build the book")
    whole.add_argument("--results", type=Path, help="a release's folder: run nothing, read these")
    add("release", _release, common, help="write a folder to keep and cite: book, results, code")
    add(
        "plan",
        lambda given: print(costs.told(_checked([_plan(given)]))),
        common,
        alone=False,
        help="tell how many jobs a run has, and about how long it takes",
    )
    part = add("run", _run, *both, help="run stages, build no book")
    part.add_argument("--until", nargs="+", default=[], metavar="STAGE", help="default: all")
    add("models", _models, *both, help="run the models that are compared, a book for each")
    add("sweep", _sweep, *both, help="run a file of models, tasks and seeds")
    add("notebooks", lambda given: notebooks(), help="run the committed notebooks again, in place")
    one = add("stage", _stage, common, alone=False, help="run one stage")
    one.add_argument("name")
    one.add_argument("--task")
    one.add_argument("--seed", type=int, help="of a sweep, one of its seeds")
    one.add_argument("--output", required=True)
    add(
        "publish", lambda given: pages.publish(_plan(given)), common, help="put results in the book"
    )
    paper = add("pdf", _pdf, alone=False, help="print the built book")
    paper.add_argument("file", nargs="?", type=Path, default=store.ROOT / "_build" / "book.pdf")
    wanted = add("fetch", _fetch, alone=False, help="get a model's files, to be without a network")
    wanted.add_argument("name")
    wanted.add_argument("--accept-terms", action="store_true", help="its terms of use, once")
    add("list", _list, alone=False, help="what is known of the models that have short names")
    return parser


def _plan(given: argparse.Namespace) -> Plan:
    file = given.params or store.ROOT / "params" / "laptop.yml"
    return read_plan(file, given.model, getattr(given, "seed", None))


def _book(given: argparse.Namespace) -> None:
    if given.results is None:
        book(_plan(given), given.cores, given.profile)
    elif given.params or given.model:
        raise UserError(
            "--results has its own parameters and model: leave --params and --model out."
        )
    else:
        book_of(given.results)


def _release(given: argparse.Namespace) -> None:
    print(f"The release is in {release.write(_plan(given))}")


def _models(given: argparse.Namespace) -> None:
    models(_plan(given), given.cores, given.profile)


def _run(given: argparse.Namespace) -> None:
    run(_plan(given), given.cores, given.until, given.profile)


def _sweep(given: argparse.Namespace) -> None:
    file = given.params or store.ROOT / "params" / "sweep.yml"
    plans = read_plans(file, given.model)
    if plans[0].seed is None:
        raise UserError(f"{file} is no sweep: it lists none of {', '.join(SWEEP)}.")
    sweep(plans, given.cores, given.profile)


def _stage(given: argparse.Namespace) -> None:
    run_stage(_plan(given), given.name, given.task, given.output)


def _pdf(given: argparse.Namespace) -> None:
    print(f"The book is in {pdf.write(given.file)}")


def _fetch(given: argparse.Namespace) -> None:
    if given.accept_terms:
        os.environ[terms.ACCEPT] = given.name
    print(f"{given.name} is ready in {fetching.fetch(given.name)}")


def _list(given: argparse.Namespace) -> None:
    print(
        json.dumps({name: dataclasses.asdict(entry) for name, entry in zoo.ZOO.items()}, indent=1)
    )


_REMEDIES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room on the disk")
_REMEDIES |= dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable")


def main(arguments: list[str]) -> int:
    """Run the command line; errors a user can mend are one line and status 2."""
    held = contextlib.ExitStack()
    try:
        for empty in (a for a in arguments if re.fullmatch(r"(--\w+=)?\s*", a)):
            raise UserError(f"{empty!r} holds nothing: leave it out, or say what it is.")
        given = _parser().parse_args(arguments)
        if given.alone:
            held.enter_context(alone())
        if given.command != "stage":
            _home()
        surroundings.clean()
        given.do(given)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"error: {error}: {_REMEDIES.get(error.errno or 0, 'see to it')} and start again; what "
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
