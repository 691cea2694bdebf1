"""A Sphinx extension: of the theme's 2,000 or so icons a page loads those that the book uses.

The theme brings all of Font Awesome as one script, which weighs more than most pages do. Once the
pages are written, that script is written again without the icons that no page and no script names.
"""

import re
from pathlib import Path

import pydata_sphinx_theme
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

SCRIPT = "fontawesome.js"
_ICON = re.compile(
    r"""(?x)(?P<name>"[\w-]+"|\w+) : \[\d+,\d+, \[(?P<aliases>[^\]]*)\], "[^"]*",
    (?:"[^"]*" | \["[^"]*","[^"]*"\]) \],?"""
)


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the smaller script when all pages are there."""
    app.connect("build-finished", _shrink)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def fewer(script: str, used: set[str]) -> str:
    """The script with no other icons than those; an icon may be used by one of its other names.

    Raises:
        ExtensionError: where a used icon is not there as expected: a new release of the theme.
    """
    found: set[str] = set()

    def kept(icon: re.Match[str]) -> str:
        names = {icon["name"].strip('"'), *re.findall(r'"([\w-]+)"', icon["aliases"])} & used
        found.update(names)
        return icon[0] if names else ""

    shorter = _ICON.sub(kept, script)
    if not found or shorter == script:
        raise ExtensionError(f"{SCRIPT} has no icons in the form known here; see {__file__}.")
    return shorter


def _shrink(app: Sphinx, exception: Exception | None) -> None:
    written = list(Path(app.outdir).rglob(SCRIPT))
    if exception or not written:
        return
    theme = Path(pydata_sphinx_theme.__file__).parent / "theme" / "pydata_sphinx_theme"
    original = theme / "static" / "scripts" / SCRIPT  # what was written may be short already
    used: set[str] = set()
    for path in Path(app.outdir).rglob("*"):
        if path.suffix in (".html", ".js") and path.name != SCRIPT:
            used.update(re.findall(r"\bfa-([\w-]+)", path.read_text(encoding="utf-8")))
    shorter = fewer(original.read_text(encoding="utf-8"), used)
    for path in written:
        path.write_text(shorter, encoding="utf-8")
