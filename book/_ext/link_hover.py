"""A Sphinx extension: a link carries what it leads to, for `book.js` to show.

A link to the glossary has the definition; one to a chapter has its finding and its first figure.
"""

import functools
import posixpath
import re
from html import escape
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

_LINK = re.compile(r'<a (class="reference internal" href="([^"#]*)(?:#([^"]*))?")')
FINDING = "In short."
"""How the paragraph with a chapter's finding begins."""


def setup(app: Sphinx) -> dict[str, bool]:
    """Add what is shown when a page is written."""
    app.connect("html-page-context", _tell)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


@functools.lru_cache(maxsize=1)  # the same on every page
def _definitions(app: Sphinx) -> dict[str, str]:
    if "glossary" not in app.env.found_docs:
        return {}
    found = {}
    for entry in app.env.get_doctree("glossary").findall(nodes.definition_list_item):
        text = " ".join(part.astext() for part in entry.findall(nodes.definition))
        for term in entry.findall(nodes.term):
            found |= dict.fromkeys(term["ids"], " ".join(text.split()))
    return found


@functools.lru_cache(maxsize=1)
def _chapters(app: Sphinx) -> dict[str, tuple[str, str]]:
    """Chapter to its finding, and the file of its first figure (nothing where it has none)."""
    found = {}
    for page in sorted(app.env.found_docs):
        if not page.startswith("runs/"):
            continue
        chapter = app.env.get_doctree(page)
        quotes = (" ".join(q.astext().split()) for q in chapter.findall(nodes.block_quote))
        finding = next((text for text in quotes if text.startswith(FINDING)), "")
        if finding:
            figure = next(chapter.findall(nodes.figure), None)
            image = next(figure.findall(nodes.image), None) if figure else None  # the wide form
            shown = app.env.images.get(image["uri"]) if image else None
            file = posixpath.join(app.builder.imagedir, shown[1]) if shown else ""
            found[page] = finding.removeprefix(FINDING).strip(), file
    return found


def _tell(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    here = posixpath.dirname(page)

    def add(match: re.Match) -> str:
        link, target, place = match.groups()
        text, figure = _definitions(app).get(place or "", ""), ""
        if not (place or "").startswith("term-"):
            name = posixpath.normpath(posixpath.join(here, target)).removesuffix(".html")
            text, figure = _chapters(app).get(name, ("", "")) if target else ("", "")
        more = f' data-definition="{escape(text)}"' if text else ""
        if figure:
            more += f' data-figure="{escape(posixpath.relpath(figure, here or "."))}"'
        return f"<a{more} {link}"

    if context.get("body"):
        context["body"] = _LINK.sub(add, context["body"])
