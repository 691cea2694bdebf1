"""How results were made: whether a run's record still holds."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqcirc_utils import store
from seqcirc_utils.errors import UserError
from seqcirc_utils.workflow.fingerprint import fingerprint
from seqcirc_utils.workflow.stages import STAGES


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
        if any(store.sha256(where / file) != was for file, was in record["files"].items()):
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
