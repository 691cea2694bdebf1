"""Where results live, and how files are written: whole or not at all, never pickled.

Layout: ``<results>/<model>/<task>/<stage>.json`` (and ``.csv``, ``.npz``); what concerns all tasks
stands one level up, in ``<results>/<model>/``.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqcirc_utils.errors import UserError

if TYPE_CHECKING:  # names and paths are asked for much more often than tables
    import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
"""The checkout: notebooks, parameters and results are found from here, whatever the caller's
working directory is (papermill's is the caller's, nbval's the notebook's)."""

WRITTEN: list[tuple[Path, str]] = []
"""What this process has written, with the SHA-256 of each file, so that a run can tell its own."""


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary neighbour of ``path`` and rename it to ``path`` if nothing went wrong."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # or a power loss could leave the name with half the content
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.replace(temporary, path)
        WRITTEN.append((path.absolute(), digest))
    finally:
        temporary.unlink(missing_ok=True)


def plain(name: str) -> str:
    """Return a name with a hyphen for whatever a shell, YAML or a pattern may read otherwise."""
    return re.sub(r"[^\w.-]+", "-", name)


def stamp(*paths: Path) -> tuple:
    """What tells a changed file: a sweep asks the same of the same files thousands of times."""
    found = ((p, p.stat()) for p in paths)
    return tuple((str(p), stat.st_mtime_ns, stat.st_size) for p, stat in found)


def write_text(path: Path | str, text: str) -> Path:
    """Write ``text`` to ``path`` in one step."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (np.ndarray, set, frozenset)):
        return sorted(value) if isinstance(value, (set, frozenset)) else value.tolist()
    raise TypeError(f"{type(value).__name__} does not go into JSON")


def write_json(path: Path | str, data: Any) -> Path:
    """Write ``data`` as indented JSON (NaN is refused: it is not JSON)."""
    text = json.dumps(data, indent=1, default=_plain, allow_nan=False, ensure_ascii=False)
    return write_text(path, text + "\n")


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run the stage that makes it first.") from None
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it and run again.") from error


def read_json(path: Path | str) -> Any:
    """Read a JSON file; a missing or damaged one is a :class:`UserError`."""
    return _read(Path(path), lambda p: json.loads(p.read_text(encoding="utf-8")))


def write_csv(path: Path | str, frame: "pd.DataFrame") -> Path:
    """Write a table without its index."""
    with writing(path) as temporary:
        frame.to_csv(temporary, index=False)
    return Path(path)


def read_csv(path: Path | str) -> "pd.DataFrame":
    """Read a table; component names such as ``4.10`` stay text."""
    import pandas as pd

    return _read(Path(path), lambda p: pd.read_csv(p, dtype={"component": str, "head": "Int64"}))


def read_text_csv(path: Path | str) -> "pd.DataFrame":
    """Read a table whose every cell stays the text that it is in the file."""
    import pandas as pd

    return _read(Path(path), lambda p: pd.read_csv(p, dtype=str, keep_default_na=False))


def write_npz(path: Path | str, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write named arrays, compressed."""
    with writing(path) as temporary, temporary.open("wb") as file:
        whole: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
        np.savez_compressed(file, **whole)
    return Path(path)


def read_npz(path: Path | str) -> dict[str, np.ndarray]:
    """Read named arrays (pickled ones are refused)."""

    def load(path: Path) -> dict[str, np.ndarray]:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    return _read(Path(path), load)


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
