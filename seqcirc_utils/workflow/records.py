"""The record of a run, ``<stage>.run.json``: how results were made, and whether it still holds.

It tells which parameters and which sources made them; results made otherwise are never mixed in.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqcirc_utils import store
from seqcirc_utils.errors import UserError
from seqcirc_utils.workflow.fingerprint import drawing, fingerprint, versions
from seqcirc_utils.workflow.stages import STAGES


def write(
    stage: str, parameters: Mapping[str, Any], directory: Path, facts: Mapping[str, Any]
) -> Path:
    """Write the record of a run.

    Args:
        stage: The stage.
        parameters: All of its parameters.
        directory: Where its results are.
        facts: Further entries, which take the place of those made here.
    """
    record = {
        "stage": stage,
        "task": parameters.get("task"),
        "parameters": parameters,
        "seed": parameters.get("seed"),
        "versions": versions(),
        "commit": commit(),
        "library": fingerprint(stage, parameters),
        "drawing": drawing(stage),
        "inputs": {},
        "files": {},
    }
    return store.write_json(directory / f"{stage}.run.json", {**record, **facts})


def commit() -> str:
    """Return the checkout's commit, ``+`` behind it where files differ; empty without git."""
    git = ["git", "-C", str(store.ROOT)]
    try:
        top = _said([*git, "rev-parse", "--show-toplevel"])
        if Path(top).resolve() != store.ROOT.resolve():  # a copy inside somebody's repository
            return ""
        head = _said([*git, "rev-parse", "HEAD"])
        return head + ("+" if _said([*git, "status", "--porcelain", "-uno"]) else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _said(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


def relative(path: Path, directory: Path) -> str:
    """Return a path as a record tells it."""
    return os.path.relpath(path, directory)


def is_current(stage: str, record: Path, shared: Mapping[str, Any] | None = None) -> bool:
    """Tell whether a stage's results are whole and made by the present sources.

    Args:
        stage: The stage.
        record: Its record.
        shared: Parameters that must be the same; those that the stage does not declare are
            passed over.

    Raises:
        UserError: for an unknown stage.
    """
    where = record.parent
    try:
        told = store.read_json(record)
        made, library, inputs = told["parameters"], told["library"], told["inputs"]
        if any(store.sha256(where / file) != was for file, was in told["files"].items()):
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
        if not same or name not in STAGES or not is_current(name, upstream):
            return False
    return True


def holds(record: Path) -> bool:
    """Tell whether the results of a record are whole and made by the present sources."""
    return is_current(record.name.removesuffix(".run.json"), record)


def is_drawn(stage: str, record: Path) -> bool:
    """Tell whether a stage's page was made by the present notebook and figures."""
    with contextlib.suppress(UserError, KeyError, TypeError):
        return store.read_json(record)["drawing"] == drawing(stage)
    return False


def set_aside(record: Path) -> None:
    """Make a record count no longer, but keep it: the next run may take as long as this one."""
    with contextlib.suppress(FileNotFoundError):
        record.replace(last(record))


def keep(record: Path) -> None:
    """Keep a copy of a record: Snakemake removes it before it runs the stage again."""
    shutil.copyfile(record, last(record))  # no result: not by way of the store, which lists these


def skipped(record: Path) -> str:
    """Return why a stage was skipped; nothing if it was not."""
    with contextlib.suppress(UserError):
        return store.read_json(record).get("skipped", "")
    return ""


def last(record: Path) -> Path:
    """Return where a record is kept after it was set aside."""
    return record.with_name(f".{record.name}")
