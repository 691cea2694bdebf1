"""A Sphinx extension: a book that lacks chapters is not built, whoever begins the build.

Without it, `jupyter-book build book` before any run ends well, with a book that is hollow.
"""

from pathlib import Path

import yaml
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ConfigError
from sphinx_external_toc.parsing import parse_toc_data


def setup(app: Sphinx) -> dict[str, bool]:
    """Check the table of contents before anything is read."""
    app.connect("config-inited", _check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _check(app: Sphinx, config: Config) -> None:
    book = Path(app.srcdir)
    toc = parse_toc_data(yaml.safe_load((book / config.external_toc_path).read_bytes()))
    ends = ("", ".md", ".ipynb", ".rst")
    missing = [page for page in toc if not any((book / f"{page}{end}").is_file() for end in ends)]
    if missing:
        raise ConfigError(
            f"the book lacks {len(missing)} of its pages ({missing[0]}, …): run `make book`, which "
            "makes them first."
        )
