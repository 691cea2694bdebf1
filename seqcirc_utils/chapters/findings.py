"""What a chapter found: one object that writes itself to files and reads itself from them.

A chapter's findings are a dataclass whose fields say where they are kept::

    @dataclass(frozen=True, kw_only=True)
    class Patching(Findings):
        stage = "03_patching"
        paths: pd.DataFrame = table("paths.csv", sender=str, receiver=str, effect=float)
        ablation: np.ndarray = array()  # [component, n]
        spearman: float

A table is a CSV of its own, arrays share one npz, and all other fields one JSON; each name begins
with the stage's. Writer and reader share the columns and their types: ``4.10`` is a component's
name, never the number 4.1.

Nothing here draws: how findings look (``figures``) is no part of what decides them.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd

from seqcirc_utils import store
from seqcirc_utils.errors import UserError

if TYPE_CHECKING:  # it needs torch, and reading needs none
    from seqcirc_utils.chapters.setting import Setting


def table(
    suffix: str, columns: Mapping[str, Any] | None = None, *, more: Any = None, **named: Any
) -> Any:
    """A field that is a table, kept in ``<stage>.<suffix>``.

    Args:
        suffix: The end of the file's name, as in ``paths.csv``.
        columns: Column to type (``str``, ``float``, ``int``, ``bool`` or ``"Int64"``), in order.
        more: The type of further columns whose names depend on the run; none when ``None``.
        named: More columns, where the names allow to write them so.
    """
    known = dict(columns or {}) | named
    return dataclasses.field(metadata={"table": suffix, "columns": known, "more": more})


def each(kind: Any, *names: str) -> dict[str, Any]:
    """Columns of one type, for :func:`table`."""
    return dict.fromkeys(names, kind)


def array() -> Any:
    """A field that is a numpy array, kept in ``<stage>.npz`` under the field's name."""
    return dataclasses.field(metadata={"array": True})


def part(suffix: str, kind: type) -> Any:
    """A field with ``save`` and ``load`` of its own, kept in ``<stage>.<suffix>``."""
    return dataclasses.field(metadata={"part": suffix, "kind": kind})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """What a stage found; see the module. Subclasses say how it is measured.

    Attributes:
        stage: The stage's name, with which its files begin.
    """

    stage: ClassVar[str]

    @classmethod
    def measure(cls, at: "Setting") -> Self:
        """Measure everything.

        Args:
            at: Parameters, model and prompts, and what other chapters found.

        Raises:
            CannotDo: where the model cannot do the task.
        """
        raise NotImplementedError

    @classmethod
    def empty(cls, name: str) -> pd.DataFrame:
        """A table without rows, for what a model does not have."""
        columns = _field(cls, name).metadata["columns"]
        return pd.DataFrame({c: pd.Series(dtype=kind) for c, kind in columns.items()})

    def save(self, directory: Path) -> None:
        """Write everything into a directory.

        Raises:
            ValueError: for a table that has not the columns that its field names.
        """
        arrays, document = {}, {}
        for field in dataclasses.fields(self):
            value, kept = getattr(self, field.name), field.metadata
            if "table" in kept:
                frame = _typed(value, field.name, kept)
                store.write_csv(self._path(directory, kept["table"]), frame)
            elif "part" in kept:
                value.save(self._path(directory, kept["part"]))
            elif "array" in kept:
                arrays[field.name] = value
            else:
                document[field.name] = value
        if arrays:
            store.write_npz(self._path(directory, "npz"), arrays)
        if document:
            store.write_json(self._path(directory, "json"), document)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read everything from a directory.

        Raises:
            UserError: for a file that is missing, damaged, or of another version.
        """
        return cls(**{f.name: cls.one(directory, f.name) for f in dataclasses.fields(cls)})

    @classmethod
    def one(cls, directory: Path, name: str) -> Any:
        """Read one field from a directory.

        Raises:
            UserError: as :meth:`load` does.
        """
        kept = _field(cls, name).metadata
        if "table" in kept:
            return _read(cls._path(directory, kept["table"]), kept)
        if "part" in kept:
            return kept["kind"].load(cls._path(directory, kept["part"]))
        path = cls._path(directory, "npz" if "array" in kept else "json")
        found = store.read_npz(path) if "array" in kept else store.read_json(path)
        if name not in found:
            raise UserError(f"{path} lacks {name}: delete it and run again.")
        return found[name]

    @classmethod
    def tables(cls) -> dict[str, str]:
        """The fields that are tables, by the name of their file."""
        kept = {field.name: field.metadata for field in dataclasses.fields(cls)}
        return {f"{cls.stage}.{k['table']}": name for name, k in kept.items() if "table" in k}

    @classmethod
    def _path(cls, directory: Path, suffix: str) -> Path:
        return directory / f"{cls.stage}.{suffix}"


def _field(cls: type, name: str) -> dataclasses.Field:
    return next(field for field in dataclasses.fields(cls) if field.name == name)


def _types(columns: Any, kept: Mapping[str, Any]) -> dict[str, Any]:
    """The type of each column of a table, or an error where they are not those of the field."""
    known, there = kept["columns"], list(columns)
    fits = there[: len(known)] == list(known)
    if not fits or (kept["more"] is None and len(there) > len(known)):
        raise ValueError(f"its columns are {', '.join(map(str, there))}, not {', '.join(known)}")
    return known | {name: kept["more"] for name in there[len(known) :]}


def _typed(frame: pd.DataFrame, name: str, kept: Mapping[str, Any]) -> pd.DataFrame:
    try:
        kinds = _types(frame.columns, kept)
        blank = {c: "" for c, kind in kinds.items() if kind is str}
        return frame.fillna(blank).astype(kinds)
    except (ValueError, TypeError) as error:
        raise ValueError(f"table {name}: {error}.") from error


def _read(path: Path, kept: Mapping[str, Any]) -> pd.DataFrame:
    frame = store.read_text_csv(path)  # types come from the field
    try:
        kinds = _types(frame.columns, kept)
        for column, kind in kinds.items():
            if kind is bool:
                frame[column] = frame[column].map({"True": True, "False": False})
            elif kind is not str:
                # Text to number by Python's own rule: what was written comes back to the bit.
                values = [float(text) if text else np.nan for text in frame[column]]
                frame[column] = pd.array(values, dtype=float)
        return frame.astype(kinds)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {error}: delete it and run again.") from error
