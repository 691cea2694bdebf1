"""Terms of use that a model's user must accept once, before it is fetched.

A file in the cache records what was accepted, where it stands, when and how.
"""

import os
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path

from seqcirc_utils import store
from seqcirc_utils.errors import UserError
from seqcirc_utils.models.zoo import Entry, cache_dir

ACCEPT = "SEQCIRC_ACCEPT_TERMS"
"""The environment variable with the names of the models whose terms are accepted, by commas."""


def accepted(name: str) -> bool:
    """Tell whether the cache records that a model's terms were accepted."""
    return _record(name).is_file()


def require(name: str, entry: Entry) -> None:
    """Refuse a model whose terms nobody has accepted and nobody can be asked about.

    Raises:
        UserError: with how to accept them.
    """
    if entry.terms and not accepted(name) and not _named(name) and not _can_ask():
        raise _refusal(name, entry)


def ask(name: str, entry: Entry, wheel: Path) -> None:
    """Show the terms that a wheel holds, and record that they were accepted.

    Raises:
        UserError: where they were not.
    """
    print(_text(wheel, entry.terms_file), file=sys.stderr)
    print(f"\nThese are the terms of {entry.title}, from {entry.terms}.", file=sys.stderr)
    how = f"{ACCEPT} or --accept-terms" if _named(name) else "typed"
    if not _named(name):
        print("Type yes to accept them: ", end="", file=sys.stderr, flush=True)
        if not _can_ask() or sys.stdin.readline().strip().lower() != "yes":
            raise _refusal(name, entry)
    told = {"model": name, "terms": entry.terms, "how": how, "wheel_sha256": store.sha256(wheel)}
    told["accepted"] = datetime.now(UTC).isoformat(timespec="seconds")
    store.write_json(_record(name), told)


def _record(name: str) -> Path:
    return cache_dir() / f"{name}.terms.json"


def _named(name: str) -> bool:
    return name in [given.strip() for given in os.environ.get(ACCEPT, "").split(",")]


def _can_ask() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _refusal(name: str, entry: Entry) -> UserError:
    return UserError(
        f"{entry.title} is fetched once its terms of use are accepted: read {entry.terms}, then "
        f"`python -m seqcirc_utils fetch {name} --accept-terms`, or set {ACCEPT}={name}."
    )


def _text(wheel: Path, file: str) -> str:
    """The article of a page of HTML, as plain text."""
    from bs4 import BeautifulSoup

    with zipfile.ZipFile(wheel) as archive:
        page = BeautifulSoup(archive.read(file), "html.parser")
    article = page.find(class_="devsite-article-body") or page.body or page
    lines = (" ".join(line.split()) for line in article.get_text().splitlines())
    return "\n".join(line for line in lines if line)
