"""A Sphinx extension: a link to the glossary carries its definition, for `book.js` to show."""

import functools
import html
import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

_LINK = re.compile(r'<a (class="reference internal" href="[^"]*(?:glossary\.html)?#(term-[^"]+)")')


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the definitions when a page is written."""
    app.connect("html-page-context", _define)
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


def _define(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    body = context.get("body", "")
    if not _LINK.search(body):
        return
    known = _definitions(app)

    def add(match: re.Match) -> str:
        said = known.get(match[2], "")
        return f'<a data-definition="{html.escape(said)}" {match[1]}' if said else match[0]

    context["body"] = _LINK.sub(add, body)
