"""The analysis stages: notebooks run by papermill with strictly checked parameters.

A notebook's cell tagged ``parameters`` declares what may be set. Papermill itself only warns of
unknown names and checks no types, so everything is checked here, before any compute. Each result
has a ``<stage>.run.json`` beside it that tells which parameters and which sources made it; results
made otherwise are never mixed in.
"""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock

from seqcirc_utils import models, store
from seqcirc_utils.errors import CannotDo, UserError, unknown


@dataclass(frozen=True)
class Stage:
    """One notebook: whether it runs once per task, and the stages whose results it reads."""

    name: str
    per_task: bool = True
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parameter:
    """A declared parameter: its default value, its type, and a line of help."""

    name: str
    default: Any
    type: type
    help: str


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("00_ground_truth", per_task=False),
        Stage("01_task_construction"),
        Stage("02_logit_attribution"),
        Stage("03_patching"),
        Stage("04_circuit_discovery", needs=("03_patching",)),
        Stage("05_component_roles", needs=("03_patching", "04_circuit_discovery")),
        Stage(
            "06_cross_task",
            per_task=False,
            needs=("03_patching", "04_circuit_discovery", "05_component_roles"),
        ),
        Stage("07_generalisation", per_task=False, needs=("03_patching", "04_circuit_discovery")),
        Stage(
            "08_prediction_and_editing",
            per_task=False,
            needs=("03_patching", "04_circuit_discovery"),
        ),
        Stage(
            "09_claims",
            per_task=False,
            needs=(
                *("01_task_construction", "02_logit_attribution", "03_patching"),
                *("04_circuit_discovery", "05_component_roles", "06_cross_task"),
                *("07_generalisation", "08_prediction_and_editing"),
            ),
        ),
    )
}

_PACKAGE = Path(__file__).resolve().parent
_TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list}
_SOURCES = (".py", ".csv", ".json", ".txt", ".yml")
_IPYTHON = {"In", "Out", "exit", "quit", "get_ipython", "open", "display"}
_CHOICES = {"device": ("auto", "cpu", "cuda"), "dtype": ("float32", "bfloat16", "float16")}


def stage_named(name: str) -> Stage:
    """Return the stage of this name.

    Raises:
        UserError: for an unknown name.
    """
    if name not in STAGES:
        raise unknown("stage", name, STAGES)
    return STAGES[name]


def notebook(stage: str) -> Path:
    """Return the path of a stage's committed notebook.

    Raises:
        UserError: for an unknown stage or a missing notebook.
    """
    path = store.ROOT / "notebooks" / f"{stage_named(stage).name}.ipynb"
    if not path.is_file():
        raise UserError(f"{stage}: its notebook {path} does not exist: restore it from git.")
    return path


def declared(stage: str) -> dict[str, Parameter]:
    """Return the parameters that a stage's notebook declares, by name.

    Raises:
        UserError: for an unknown stage, a notebook that cannot be read, or a parameters cell that
            is missing or not annotated literals.
    """
    path = notebook(stage)
    return dict(_declared(stage, path, _stamp(path)))


def _stamp(*paths: Path) -> tuple:
    """What tells a changed file: a sweep asks the same of the same files thousands of times."""
    return tuple((p, p.stat().st_mtime_ns, p.stat().st_size) for p in paths)


@functools.lru_cache
def _declared(stage: str, path: Path, stamp: tuple) -> dict[str, Parameter]:
    from nbformat import ValidationError
    from papermill import inspect_notebook

    parameters = {}
    try:
        inspected = inspect_notebook(str(path))
    except (ValueError, ValidationError) as error:  # no notebook, or one that names no kernel
        said = str(error).splitlines()[0]
        raise UserError(f"{stage}: {path.name} cannot be read: {said}") from None
    for name, found in inspected.items():
        kind = _TYPES.get(re.sub(r"\[.*", "", found["inferred_type_name"]))
        try:
            default = ast.literal_eval(found["default"])
        except (ValueError, SyntaxError):
            kind = default = None
        if kind is None:
            raise UserError(
                f"{stage}: parameter {name} in {path.name} must be an annotated literal, as in "
                f"`{name}: int = 3  # what it is` (types: {', '.join(_TYPES)})."
            )
        parameters[name] = Parameter(name, default, kind, found["help"])
    if not parameters:
        raise UserError(f"{stage}: {path.name} has no cell tagged `parameters`.")
    return parameters


def check(stage: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Check parameters strictly and return all of the stage's, with defaults filled in.

    Raises:
        UserError: for an unknown name, a wrong type or a value that is not allowed.
    """
    known = declared(stage)
    for name in parameters:
        if name not in known:
            raise unknown(f"parameter of {stage}", name, known)
    full = {name: parameters.get(name, p.default) for name, p in known.items()}
    for name, value in full.items():
        full[name] = _typed(stage, known[name], value)
        _check_value(stage, name, full[name])
    return full


def _typed(stage: str, parameter: Parameter, value: Any) -> Any:
    kind = parameter.type
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is list and isinstance(value, tuple):
        value = list(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        allowed = _allowed(parameter.name)
        raise UserError(
            f"{stage}: {parameter.name} must be {kind.__name__}, not {type(value).__name__} "
            f"({value!r}){allowed and ': ' + allowed}."
        )
    if kind is list and parameter.default:
        wanted = type(parameter.default[0])
        for item in value:
            if type(item) is not wanted:
                raise UserError(
                    f"{stage}: every item of {parameter.name} must be {wanted.__name__}, "
                    f"not {item!r}."
                )
    return value


def _allowed(name: str) -> str:
    if name.startswith("n_"):
        return "allowed is a whole number of at least 1"
    if name == "seed":
        return "allowed is a whole number of at least 0"
    if name == "threshold":
        return "allowed is a number above 0 and at most 1"
    return ""


def _check_value(stage: str, name: str, value: Any) -> None:
    wrong = (
        (name.startswith("n_") and value < 1)
        or (name == "seed" and not 0 <= value < 2**63)
        or (name == "threshold" and not 0 < value <= 1)
    )
    if wrong:
        raise UserError(f"{stage}: {name} is {value!r}: {_allowed(name)}.")
    if isinstance(value, float) and value - value != 0:
        raise UserError(f"{stage}: {name} must be a finite number, not {value}.")
    if isinstance(value, list):
        if not value:
            raise UserError(f"{stage}: {name} is empty: name at least one.")
        if len({json.dumps(item, sort_keys=True) for item in value}) < len(value):
            raise UserError(f"{stage}: {name} names something twice: {value}.")
    if name in ("task", "tasks", "templates"):
        allowed = getattr(_tasks(), "TEMPLATES" if name == "templates" else "TASKS")
        for item in [value] if isinstance(value, str) else value:
            if item not in allowed:
                raise unknown(f"{name.removesuffix('s')} of {stage}", item, allowed)
    if name in _CHOICES and value not in _CHOICES[name]:
        raise unknown(f"{name} of {stage}", value, _CHOICES[name])
    if name == "model":
        try:
            models.resolve(value)
        except UserError as error:
            raise UserError(f"{stage}: {error}") from None
    if name == "results" and not value.strip():
        raise UserError(f"{stage}: results is empty: give a directory, as in 'results/default'.")


def _tasks() -> ModuleType:
    return import_module("seqcirc_utils.tasks")


def sources(stage: str) -> list[Path]:
    """Return what determines a stage's results: its notebook and the library files it uses.

    Modules of this package are followed through their imports; a data file of the package counts
    when a string of the code names it.

    Raises:
        UserError: for an unknown stage, or a notebook that is not Python.
    """
    path = notebook(stage)
    code = "\n".join(
        "".join(cell["source"]) for cell in _cells(path) if cell["cell_type"] == "code"
    )
    code = re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", code)
    seen: set[Path] = set()
    todo = _used(code, _PACKAGE, path)
    while todo:
        found = todo.pop()
        if found not in seen:
            seen.add(found)
            if found.suffix == ".py":
                todo |= _used(found.read_text(encoding="utf-8"), found.parent, found)
    return [path, *sorted(seen)]


def _cells(path: Path) -> list[dict[str, Any]]:
    return store.read_json(path)["cells"]


def _used(code: str, here: Path, origin: Path) -> set[Path]:
    try:
        tree = ast.parse(code)
    except SyntaxError as error:
        raise UserError(f"{origin} is not Python ({error.msg}, line {error.lineno}).") from None
    found: set[Path | None] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {_module(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = here.relative_to(_PACKAGE.parent).parts
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, *([base] if base else [])])
            found |= {_module(base)} | {_module(f"{base}.{alias.name}") for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"[\w./-]+\.(csv|json|txt|yml)", node.value):
                found |= {p for p in (here / node.value, _PACKAGE / node.value) if p.is_file()}
    return {path for path in found if path is not None}


def _module(name: str) -> Path | None:
    if not name.startswith(f"{_PACKAGE.name}."):
        return None
    path = _PACKAGE.parent.joinpath(*name.split("."))
    choices = (path.with_suffix(".py"), path / "__init__.py")
    return next((choice for choice in choices if choice.is_file()), None)


def fingerprint(stage: str, parameters: Mapping[str, Any]) -> str:
    """Return the SHA-256 over a stage's own sources, its parameters, the model and the versions.

    Where results go and outputs of the notebook do not count, so that executing it in place changes
    nothing.

    Raises:
        UserError: as :func:`sources` does.
    """
    package = sorted(p for p in _PACKAGE.rglob("*.*") if p.suffix in _SOURCES)
    digest = hashlib.sha256(_code(stage, _stamp(notebook(stage), *package)))
    values = {name: value for name, value in parameters.items() if name != "results"}
    identity = models.identity(values["model"]) if "model" in values else ""
    digest.update(json.dumps([values, identity, versions()], sort_keys=True).encode())
    return digest.hexdigest()


@functools.lru_cache
def _code(stage: str, stamp: tuple) -> bytes:
    """A stage's own sources, as the bytes that its fingerprint begins with."""
    first, *rest = sources(stage)
    cells = [
        [cell["cell_type"], "".join(cell["source"]), _lasting(cell.get("metadata", {}))]
        for cell in _cells(first)
    ]
    parts = [json.dumps(cells, sort_keys=True).encode()]
    parts += [f"\0{p.relative_to(_PACKAGE)}\0".encode() + p.read_bytes() for p in rest]
    return b"".join(parts)


def _lasting(metadata: Mapping[str, Any]) -> dict[str, Any]:
    # Papermill gives every cell an empty list of tags, which says nothing.
    return {k: v for k, v in metadata.items() if v and k not in ("execution", "papermill")}


def upstream(stage: str, tasks: Sequence[str]) -> list[tuple[str, str | None]]:
    """Return the stages, with their tasks, whose results a stage of these tasks reads."""
    return [
        (need, task)
        for need in STAGES[stage].needs
        for task in (tasks if STAGES[need].per_task else [None])
    ]


def directory(results: str, model: str, task: str | None = None) -> Path:
    """Return where results live: ``<results>/<model>/<task>``, without a task one level up.

    Raises:
        UserError: for an unknown model.
    """
    base = store.ROOT / results / models.slug(model)
    return base / task if task else base


def is_current(stage: str, where: Path, shared: Mapping[str, Any] | None = None) -> bool:
    """Tell whether a stage's results in a directory are whole and made by the present sources.

    Args:
        stage: The stage.
        where: The directory of its ``run.json``.
        shared: Parameters that must be the same; those that the stage does not declare are
            passed over.

    Raises:
        UserError: for an unknown stage.
    """
    path = where / f"{stage}.run.json"
    try:
        record = store.read_json(path)
        made, library, inputs = record["parameters"], record["library"], record["inputs"]
        if any(models.sha256(where / file) != was for file, was in record["files"].items()):
            return False
    except (UserError, OSError, KeyError, TypeError):
        return False
    wanted = {k: v for k, v in (shared or {}).items() if k in made and k != "results"}
    if any(made[name] != value for name, value in wanted.items()):
        return False
    if library != fingerprint(stage, made):
        return False
    for source, seen in inputs.items():
        upstream = (where / source).resolve()
        name = upstream.name.removesuffix(".run.json")
        try:
            same = store.read_json(upstream)["library"] == seen
        except (UserError, KeyError, TypeError):
            return False
        if not same or name not in STAGES or not is_current(name, upstream.parent):
            return False
    return True


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
                execute(stage, shared, where / f"{stage}.ipynb")
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


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what decides results."""
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "transformer-lens", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found | {"seqcirc_utils": import_module("seqcirc_utils").__version__}


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


def set_aside(record: Path) -> None:
    """Make a record count no longer, but keep it: the next run may take as long as this one."""
    with contextlib.suppress(FileNotFoundError):
        record.replace(last(record))


def skipped(record: Path) -> str:
    """Return why a stage was skipped; nothing if it was not."""
    with contextlib.suppress(UserError):
        return store.read_json(record).get("skipped", "")
    return ""


def last(record: Path) -> Path:
    """Return where a record is kept after it was set aside."""
    return record.with_name(f".{record.name}")


def _own_kernel() -> type:
    """Return a kernel manager whose python3 is this interpreter, whatever Jupyter has installed."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import default

    class OwnKernel(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _no_installed_kernels(self) -> KernelSpecManager:
            return KernelSpecManager(kernel_dirs=[], ensure_native_kernel=True)

    return OwnKernel


def execute(
    stage: str, parameters: Mapping[str, Any], output: Path | str, progress: bool = True
) -> Path:
    """Run a stage's notebook with parameters and write the executed notebook to ``output``.

    ``output`` is written whole or not at all: an old one is removed when the run fails, and the
    failed notebook is kept beside it as ``<output>.failed.ipynb``. A stage whose model cannot do
    the task is no failure: the notebook ends there with the reason, which the record holds as
    ``skipped``.

    Args:
        stage: The stage.
        parameters: Those that differ from the defaults.
        output: Path of the executed notebook.
        progress: Show progress, the kernel's own included, on stderr.

    Raises:
        UserError: before any compute as :func:`check` does, afterwards if the notebook failed.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    given = check(stage, parameters)
    output = Path(output).absolute()
    failed = output.with_suffix(".failed.ipynb")
    reason = ""
    with store.writing(output) as temporary:
        try:
            try:
                papermill.execute_notebook(
                    str(notebook(stage)).replace("{", "{{").replace("}", "}}"),
                    str(temporary).replace("{", "{{").replace("}", "}}"),
                    parameters=dict(parameters),
                    kernel_name="python3",
                    kernel_manager_class=_own_kernel(),
                    language="python",
                    cwd=str(store.ROOT),
                    progress_bar=progress,
                    stderr_file=sys.stderr if progress else None,
                )
            except PapermillExecutionError as error:
                if error.ename != CannotDo.__name__:
                    raise
                reason = str(error.evalue)
            book = nbformat.read(temporary, as_version=4)
            nbformat.write(clean(_cut(book, reason) if reason else book), temporary)
        except BaseException as error:
            output.unlink(missing_ok=True)
            if not isinstance(error, Exception):
                raise
            kept = "no cell was run"
            if temporary.is_file() and temporary.stat().st_size:
                os.replace(temporary, failed)
                failed.chmod(0o644)
                kept = f"see {failed}"
            if isinstance(error, DeadKernelError):
                raise UserError(
                    f"{stage} failed: its Python process died, mostly for want of memory ({kept})"
                ) from None
            if isinstance(error, PapermillExecutionError):
                said = str(error.evalue).strip().splitlines() or [""]
                name = "" if error.ename == "UserError" else f"{error.ename}: "
                raise UserError(f"{stage} failed: {name}{said[0]} ({kept})") from None
            said = str(error).strip().splitlines() or [""]
            raise UserError(
                f"{stage} failed: {type(error).__name__}: {said[0]} ({kept})"
            ) from error
    failed.unlink(missing_ok=True)
    if reason:
        _record_skipped(stage, given, reason)
    return output


def _cut(book: Any, reason: str) -> Any:
    """Return a notebook up to the cell that raised, with the reason in place of the error."""
    import nbformat

    cells = []
    for cell in book.cells:
        if any("error" in tag for tag in cell.metadata.get("tags", [])):  # papermill's own notes
            continue
        cells.append(cell)
        if any(output.output_type == "error" for output in cell.get("outputs", [])):
            cell.outputs = [o for o in cell.outputs if o.output_type != "error"]
            break
    said = f":::{{admonition}} Skipped\n:class: warning\n{reason}\n:::"
    book.cells = [*cells, nbformat.v4.new_markdown_cell(said, id="skipped")]
    return book


def _record_skipped(stage: str, given: dict[str, Any], reason: str) -> None:
    """Write the record that the notebook did not come to write."""
    run = Run(stage, given, library=fingerprint(stage, given))
    for need, task in upstream(stage, [given["task"]] if "task" in given else given["tasks"]):
        record = run._directory(task) / f"{need}.run.json"
        with contextlib.suppress(UserError):
            source = os.path.relpath(record, run.directory)
            run.inputs[source] = store.read_json(record)["library"]
    run.finish(skipped=reason)
    print(f"{stage} of {given.get('task') or 'all tasks'} is skipped: {reason}", file=sys.stderr)


def clean(book: Any) -> Any:
    """Return an executed notebook without what differs from run to run: progress bars, times."""
    book.metadata.pop("papermill", None)
    book.metadata["kernelspec"] = {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }
    book.metadata["language_info"] = {"name": "python"}
    for cell in book.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if not (output.output_type == "stream" and output.name == "stderr")
            ]
            for output in cell.outputs:
                plain = output.get("data", {}).get("text/plain")
                if plain is not None:
                    output.data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", plain)
    return book
