"""A Sphinx extension: a figure's narrow form, which its notebook holds, is what phones show.

A cell's output keeps the narrow form in the metadata of its picture (`seqcirc_utils.figures.forms`
puts it there); beside a file `NAME.svg` of a page of text it is `NAME.narrow.svg`. Here both become
one `<picture>`: screens up to the width at which `book.css` turns to phones get the narrow form,
all others and paper the wide one. A picture without one stays as it is.
"""

import hashlib
import posixpath
import re
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from sphinx.application import Sphinx

SVG, PHONES = "image/svg+xml", "screen and (max-width: 600px)"
FITS = 290
"""Points that a phone shows without making them smaller; what is wider scrolls."""


class picture(nodes.General, nodes.Element):  # docutils' names are small
    """A wide image and, after it, its narrow form."""


def setup(app: Sphinx) -> dict[str, bool]:
    """Pair the forms when a notebook is read, before Sphinx collects the images."""
    app.add_node(picture, html=(_visit, None))
    app.connect("doctree-read", _pair, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _pair(app: Sphinx, doctree: nodes.document) -> None:
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb":
        for image in list(doctree.findall(nodes.image)):
            beside = Path(app.srcdir, image["uri"]).with_suffix(".narrow.svg")
            if beside.is_file():
                _join(app, image, beside.read_text(encoding="utf-8"))
        return
    cells = nbformat.read(path, as_version=4).cells
    for shown in list(doctree.findall(nodes.container)):
        if shown.get("nb_element") != "cell_code":
            continue
        outputs = [o for o in cells[shown["cell_index"]].outputs if SVG in o.get("data", {})]
        images = [i for i in shown.findall(nodes.image) if i["uri"].endswith(".svg")]
        for output, image in zip(outputs, images, strict=True):
            if narrow := output.metadata.get(SVG, {}).get("narrow"):
                _join(app, image, narrow)


def _join(app: Sphinx, image: nodes.image, narrow: str) -> None:
    """Write the narrow form beside the wide one, and put both into one picture."""
    name = f"{hashlib.sha256(narrow.encode()).hexdigest()}.svg"
    uri = posixpath.join(posixpath.dirname(image["uri"]), name)
    Path(app.srcdir, uri.lstrip("/")).write_text(narrow, encoding="utf-8")
    width = re.search(r'<svg[^>]* width="([\d.]+)pt"', narrow)
    scrolls = ["scrolls"] if width and float(width[1]) > FITS else []
    both = picture("", classes=scrolls)
    image["classes"].append("no-scaled-link")  # an <a> between the two would hide the narrow form
    image.replace_self(both)
    both += [image, nodes.image(uri=uri)]


def _visit(translator: Any, node: picture) -> None:
    wide, narrow = node.children
    builder = translator.builder
    source = posixpath.join(builder.imgpath, builder.images[narrow["uri"]])
    translator.body.append(translator.starttag(node, "picture", ""))
    translator.body.append(f'<source media="{PHONES}" srcset="{source}" />')
    wide.walkabout(translator)
    translator.body.append("</picture>\n")
    raise nodes.SkipNode
