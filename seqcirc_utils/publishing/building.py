"""Building the book's HTML with jupyter-book."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from seqcirc_utils import store
from seqcirc_utils.errors import UserError
from seqcirc_utils.workflow.planning import Plan


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
    sources = {str(f): store.sha256(f) for f in folder.rglob("*") if f.is_file()}
    try:
        before = store.read_json(marker)
        if marker.stat().st_mtime > time.time():
            raise UserError("built in the future")
        if before.keys() - sources.keys():
            raise UserError("Sphinx keeps the pages of what is gone")
        for file, digest in sources.items():
            if before.get(file) != digest:
                os.utime(file)
    except UserError:
        for part in ("html", ".doctrees"):
            shutil.rmtree(build / part, ignore_errors=True)
    marker.unlink(missing_ok=True)
    yield
    store.write_json(marker, sources)


def _built_toc() -> Path:
    own = store.ROOT / "book" / "runs" / "_toc.yml"
    return own if own.is_file() else store.ROOT / "book" / "_toc.yml"


def jupyter_book(output: Path, *options: str) -> list[str]:
    """Return the command that builds the published pages below a directory."""
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    command += [str(store.ROOT / "book"), *options, "--path-output", str(output)]
    command += ["--toc", str(_built_toc())]
    config = store.ROOT / "_config.yml"
    return command + (["--config", str(config)] if config.is_file() else [])


def _results() -> Path:
    """The file that tells which results the built book shows."""
    return store.ROOT / "_build" / ".results.json"


def _made_of(plan: Plan) -> dict[str, str]:
    """The records of a plan's results, by hash."""
    paths = (job.record for job in plan.jobs())
    return {str(path.relative_to(store.ROOT)): store.sha256(path) for path in paths}


def shows(plan: Plan) -> bool:
    """Tell whether the built book is of these results, as they are now."""
    with contextlib.suppress(UserError, OSError):
        return store.read_json(_results()) == _made_of(plan)
    return False


def build(plan: Plan) -> Path:
    """Build the published pages of a plan into ``_build/html``; warnings are errors.

    Raises:
        UserError: for a page that is missing or a build that warns.
    """
    folder, toc = store.ROOT / "book", _built_toc()
    _results().unlink(missing_ok=True)
    with _whole_build(folder):
        if subprocess.run(
            jupyter_book(store.ROOT, "-n", "-W", "--keep-going"), cwd=store.ROOT
        ).returncode:
            raise UserError("the book was not built without warnings: see the lines above.")
    html = store.ROOT / "_build" / "html"
    pages = [re.sub(r"\.(md|ipynb|rst)$", "", f) for f in _files(yaml.safe_load(toc.read_bytes()))]
    missing = [page for page in pages if not (html / f"{page}.html").is_file()]
    if missing:
        raise UserError(f"the built book lacks the pages {', '.join(missing)}.")
    index = html / "index.html"
    store.write_json(_results(), _made_of(plan))
    print(f"The book is in {index}: open it, or run make serve")
    return index
