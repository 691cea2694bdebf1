"""Where a figure comes from: the files it shows, its cell, the parameters and the commit.

Which files a figure shows is read off its source: the fields of the chapter's findings that the
figure's function uses, itself or through functions beside it, and where those fields are kept.
"""

import ast
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seqcirc_utils import store
from seqcirc_utils.workflow.planning import Job
from seqcirc_utils.workflow.stages import stage_named

_PACKAGE = Path(__file__).parents[1]
_CALL = re.compile(r"^(\w+)\.(\w+)\(", re.MULTILINE)


def parameters_label(job: Job) -> str:
    """The label of a page's table of parameters."""
    return f"parameters-{job.stage}-{job.task or 'all'}".replace("_", "-")


def shown(stage: str, source: str) -> list[str]:
    """Return the names of the files that a figure's cell shows, in order; none if it reads none.

    Args:
        stage: The stage whose notebook holds the cell.
        source: The cell's code, which calls ``figures.<name>(found)``, or a function of another
            module of figures by that module's name.
    """
    chapter = stage_named(stage).chapter
    kept = _kept(_PACKAGE / chapter)
    names: set[str] = set()
    for module, name in _CALL.findall(source):
        own = stage.partition("_")[2] if module == "figures" else module
        drawing = _PACKAGE / "figures" / f"{own}.py"
        if drawing.is_file():
            names |= _fields(_functions(drawing), name)
    methods = _functions(_PACKAGE / chapter)
    for name in list(names):
        names |= _fields(methods, name)
    return sorted({f"{stage}.{kept[name]}" for name in names if name in kept})


def line(job: Job, cell: Any, data: Sequence[Path]) -> str:
    """Return the line below a figure's caption, as MyST.

    Args:
        job: The run whose page it is.
        cell: The figure's cell.
        data: The files that the page offers.
    """
    there = {path.name for path in data}
    links = [f"{{download}}`{n} <data/{n}>`" for n in shown(job.stage, cell.source) if n in there]
    commit = store.read_json(job.record).get("commit", "")
    made = f"commit `{commit[:12]}{commit[40:]}`" if commit else "no commit on record"
    parts = [
        f"Data: {', '.join(links)}" if links else "A drawing, without data",
        f"cell `{cell.get('id', '')}` of {{download}}`{job.stage}.ipynb <{job.stage}.ipynb>`",
        f"{{ref}}`parameters <{parameters_label(job)}>`",
        made,
    ]
    return " · ".join(parts)


def note(job: Job, cells: Sequence[Any], data: Sequence[Path]) -> None:
    """Add to every figure of a page the line that says where it comes from."""
    for cell in cells:
        figure = cell.metadata.get("mystnb", {}).get("figure")
        if figure and figure.get("caption"):
            figure["caption"] += f"\n\n{line(job, cell, data)}"


@functools.lru_cache
def _functions(path: Path) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@functools.lru_cache
def _kept(path: Path) -> dict[str, str]:
    """Field of a chapter's findings to the end of the name of the file that holds it."""
    found: dict[str, str] = {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            called, end = _call(node.value)
            if called in ("table", "part") and end:
                found[node.target.id] = end
            else:
                found[node.target.id] = "npz" if called == "array" else "json"
    return found


def _call(node: ast.expr | None) -> tuple[str, str]:
    """A call's name and first argument, as far as they are plain."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        return "", ""
    first = node.args[0] if node.args else None
    return node.func.id, str(first.value) if isinstance(first, ast.Constant) else ""


def _fields(functions: dict[str, ast.FunctionDef], name: str) -> set[str]:
    """Attributes of the findings that a function uses, itself or through its neighbours."""
    found: set[str] = set()
    seen, todo = set(), [name]
    while todo:
        function = functions.get(todo.pop())
        if function is None or function.name in seen:
            continue
        seen.add(function.name)
        for kind, used in _uses(function):
            (found.add if kind == "field" else todo.append)(used)
    return found


def _uses(function: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in ("found", "self"):
                yield "field", node.attr
        elif isinstance(node, ast.Name):
            yield "function", node.id
