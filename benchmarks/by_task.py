"""What benchmarks share that are made a task at a time: options, and going on where they were.

A file's rows are kept as long as the settings at its head are those asked for.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from seqcirc_utils import store
from seqcirc_utils.models import loading, zoo
from seqcirc_utils.prompts.sequences import TASKS
from seqcirc_utils.workflow.fingerprint import versions

Row = dict[str, Any]


def options(told: str | None, file: Path) -> argparse.ArgumentParser:
    """A parser with the options that all have.

    Args:
        told: The script's docstring.
        file: Where the rows go unless another file is named.
    """
    parser = argparse.ArgumentParser(description=told)
    parser.add_argument("--model", default=zoo.DEFAULT)
    parser.add_argument("--tasks", nargs="+", default=["digits", "number_words", "months"])
    parser.add_argument("--output", type=Path, default=file)
    return parser


def parsed(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The options; ends the program for a task that is none."""
    asked = parser.parse_args(arguments)
    if unknown := set(asked.tasks) - set(TASKS):
        parser.error(f"unknown task {', '.join(sorted(unknown))}: known are {', '.join(TASKS)}.")
    return asked


def rows(
    asked: argparse.Namespace,
    settings: dict[str, Any],
    made: Callable[[loading.Model, str], Iterable[Row]],
) -> list[Row]:
    """All rows: those that the file has, and those of further tasks, written after each task.

    Args:
        asked: What :func:`parsed` gave.
        settings: What else the rows depend on.
        made: Gives a task's rows.
    """
    about = {"model": asked.model, "versions": versions()} | settings
    done = store.read_json(asked.output) if asked.output.is_file() else {}
    found: list[Row] = done.pop("rows", []) if {k: done.get(k) for k in about} == about else []
    model = loading.load(asked.model, "cpu")
    about["components"] = model.n_layers * (model.n_heads + 1)
    for task in asked.tasks:
        if any(row["task"] == task for row in found):
            continue
        of_task = []
        for row in made(model, task):
            of_task.append(row)
            print({k: v for k, v in row.items() if k != "circuit"}, flush=True)
        found += of_task
        store.write_json(asked.output, about | {"rows": found})
    print(f"Written to {asked.output}")
    return found
