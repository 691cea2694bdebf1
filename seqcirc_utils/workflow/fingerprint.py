"""What decides a stage's results, and what decides how they are shown.

Results are decided by the chapter's module with all it uses, the parameters, the model and the
versions; how they are shown, by the notebook and the figures too. So a colour or a caption outdates
a page, which is drawn again from its results, and nothing that was computed.
"""

import ast
import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqcirc_utils import store
from seqcirc_utils.errors import UserError
from seqcirc_utils.models import zoo
from seqcirc_utils.versions import versions
from seqcirc_utils.workflow.stages import directory, notebook, stage_named

_PACKAGE = Path(__file__).resolve().parents[1]
_DATA = (".css", ".csv", ".html", ".js", ".json", ".txt", ".yml")


def sources(stage: str) -> list[Path]:
    """Return the files that decide a stage's results: its chapter's module, and all it uses.

    Modules of this package are followed through their imports; a data file of the package counts
    when a string of the code names it. A notebook without such a module decides by itself.

    Raises:
        UserError: for an unknown stage, or a notebook that is not Python.
    """
    chapter = _PACKAGE / stage_named(stage).chapter
    return _followed({chapter}) if chapter.is_file() else drawing_sources(stage)


def drawing_sources(stage: str) -> list[Path]:
    """Return the files that decide how a stage's results are shown: its notebook, and all it uses.

    Raises:
        UserError: as :func:`sources` does.
    """
    path = notebook(stage)
    code = "\n".join(
        "".join(cell["source"]) for cell in _cells(path) if cell["cell_type"] == "code"
    )
    code = re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", code)
    return [path, *_followed(_used(code, _PACKAGE, path))]


def _followed(todo: set[Path]) -> list[Path]:
    seen, package = set(), _package()
    while todo:
        found = todo.pop()
        if found not in seen:
            seen.add(found)
            todo |= _uses(found, package) if found.suffix == ".py" else set()
    return sorted(seen)


@functools.lru_cache(maxsize=1024)
def _uses(module: Path, package: tuple) -> set[Path]:
    """What a module uses itself, in a package of this stamp: most stages have most modules."""
    return _used(module.read_text(encoding="utf-8"), module.parent, module)


def _package() -> tuple:
    return store.stamp(*sorted(p for p in _PACKAGE.rglob("*.*") if p.suffix in (".py", *_DATA)))


def _cells(path: Path) -> list[dict[str, Any]]:
    return store.read_json(path)["cells"]


def _used(code: str, here: Path, origin: Path) -> set[Path]:
    """The files of the package that code in a directory ``here`` imports or names."""
    try:
        imports, data = _named(code)
    except SyntaxError as error:
        raise UserError(f"{origin} is not Python ({error.msg}, line {error.lineno}).") from None
    found: set[Path | None] = set()
    for base, level, names in imports:
        if level:
            parts = here.relative_to(_PACKAGE.parent).parts
            parts = parts[: len(parts) - level + 1]
            base = ".".join([*parts, *([base] if base else [])])
        found |= {_module(base)} | {_module(f"{base}.{name}") for name in names}
    for name in data:
        found |= {p for p in (here / name, _PACKAGE / name) if p.is_file()}
    return {path for path in found if path is not None}


def _named(code: str) -> tuple[set[tuple[str, int, tuple[str, ...]]], set[str]]:
    """What code imports (module, how many levels up, names of it), and the data files it names."""
    imports: set[tuple[str, int, tuple[str, ...]]] = set()
    data: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            imports |= {(alias.name, 0, ()) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            imports.add((node.module or "", node.level, names))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.endswith(_DATA) and re.fullmatch(r"[\w./-]+", node.value):
                data.add(node.value)
    return imports, data


def _module(name: str) -> Path | None:
    if not name.startswith(f"{_PACKAGE.name}."):
        return None
    path = _PACKAGE.parent.joinpath(*name.split("."))
    choices = (path.with_suffix(".py"), path / "__init__.py")
    return next((choice for choice in choices if choice.is_file()), None)


def fingerprint(stage: str, parameters: Mapping[str, Any]) -> str:
    """Return the SHA-256 over what decides a stage's results; where they go does not count.

    Raises:
        UserError: as :func:`sources` does.
    """
    digest = hashlib.sha256(_code(stage, False, _stamp(stage)))
    values = {name: value for name, value in parameters.items() if name != "results"}
    identity = zoo.identity(values["model"]) if "model" in values else ""
    digest.update(json.dumps([values, identity, versions()], sort_keys=True).encode())
    others = _others(stage, parameters)
    if others is not None:
        told = _of_others(stage, parameters["tasks"], others)
        digest.update(json.dumps(told, sort_keys=True).encode())
    return digest.hexdigest()


def _others(stage: str, parameters: Mapping[str, Any]) -> list[Path] | None:
    """Where other models' results are that a stage reads; ``None`` for one that reads none."""
    asked = stage_named(stage)
    if not (asked.across or asked.beside_paper):
        return None
    own = directory(parameters["results"], parameters["model"])
    if asked.across:
        found = []
        for model in parameters["compare"]:
            with contextlib.suppress(UserError):  # no such model
                found.append(directory(parameters["results"], model))
    else:
        found = [path for path in own.parent.glob("*") if _of_paper(path)]
    return [path for path in sorted(set(found)) if path != own]  # its own are inputs


def _of_paper(directory: Path) -> bool:
    """Whether results are of the paper's model, as Evidence knows it."""
    for record in sorted(directory.glob("*/03_patching.run.json")):
        with contextlib.suppress(UserError, AttributeError):
            if store.read_json(record).get("model", {}).get("zoo") == zoo.PAPER:
                return True
    return False


def _of_others(stage: str, tasks: Sequence[str], others: Sequence[Path]) -> dict[str, Any]:
    """The result files of other models that a stage reads, by hash, as their records tell."""
    found: dict[str, Any] = {}
    for where in others:
        for need in stage_named(stage).needs:
            for task in tasks if stage_named(need).per_task else [""]:
                with contextlib.suppress(UserError):  # not there
                    told = store.read_json(where / task / f"{need}.run.json")
                    kept = {k: told.get(k) for k in ("files", "parameters", "skipped", "library")}
                    found[f"{where.name} {need} {task}"] = kept
    return found


def drawing(stage: str) -> str:
    """Return the SHA-256 over what decides how a stage's results are shown.

    Outputs of the notebook do not count, so that executing it in place changes nothing.

    Raises:
        UserError: as :func:`sources` does.
    """
    return hashlib.sha256(_code(stage, True, _stamp(stage))).hexdigest()


def _stamp(stage: str) -> tuple:
    return store.stamp(notebook(stage)) + _package()


@functools.lru_cache
def _code(stage: str, shown: bool, stamp: tuple) -> bytes:
    """The bytes of the files that decide a stage's results, or how they are shown."""
    parts = []
    for path in drawing_sources(stage) if shown else sources(stage):
        if path.suffix == ".ipynb":
            cells = [
                [cell["cell_type"], "".join(cell["source"]), _lasting(cell.get("metadata", {}))]
                for cell in _cells(path)
            ]
            parts.append(json.dumps(cells, sort_keys=True).encode())
        else:
            parts.append(f"\0{path.relative_to(_PACKAGE)}\0".encode() + path.read_bytes())
    return b"".join(parts)


def _lasting(metadata: Mapping[str, Any]) -> dict[str, Any]:
    # Papermill gives every cell an empty list of tags, which says nothing.
    return {k: v for k, v in metadata.items() if v and k not in ("execution", "papermill")}
