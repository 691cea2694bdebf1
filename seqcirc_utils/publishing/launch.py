"""Where a chapter's notebook can be run without installing anything, once the project is public."""

import re
from urllib.parse import quote

import yaml

from seqcirc_utils import store
from seqcirc_utils.workflow.stages import notebook

COLAB = "binder/colab.ipynb"
"""Installs the project in a Colab session, and runs a notebook there."""


def links(stage: str) -> list[str]:
    """A line of links that run a stage's notebook elsewhere, or show its source.

    Returns:
        The line, in Markdown; none where ``repository: url`` of ``_config.yml`` names no repository
        on GitHub, which both services read from.
    """
    config = yaml.safe_load((store.ROOT / "_config.yml").read_text(encoding="utf-8"))
    repository = config.get("repository") or {}
    url = str(repository.get("url") or "").strip().rstrip("/").removesuffix(".git")
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", url)
    if not found:
        return []
    path = str(notebook(stage).relative_to(store.ROOT))
    branch = quote(str(repository.get("branch") or "main"), safe="")
    places = {
        "Binder": f"https://mybinder.org/v2/gh/{found[1]}/{branch}?labpath={quote(path, safe='')}",
        "Colab": f"https://colab.research.google.com/github/{found[1]}/blob/{branch}/{COLAB}",
        "its source": f"{url}/blob/{branch}/{path}",
    }
    said = " · ".join(f"[{name}]({address})" for name, address in places.items())
    return [f"Run it without installing anything, or read it as it is kept: {said}."]
