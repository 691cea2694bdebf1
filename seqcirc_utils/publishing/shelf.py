"""Several models' books side by side, and the page before them."""

import html
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from seqcirc_utils import store
from seqcirc_utils.errors import UserError
from seqcirc_utils.models import zoo
from seqcirc_utils.workflow import stages
from seqcirc_utils.workflow.planning import Plan

_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Shared circuits: the models</title>
<style>:root {{ color-scheme: light dark }} body {{ font: 1.05rem/1.5 system-ui, sans-serif;
max-width: 45rem; margin: 3rem auto; padding: 0 1rem }} td, th {{ text-align: left;
padding: .3rem .8rem }}
</style></head><body>
<h1>Shared circuits: the models</h1>
<p>A book for each model, all with the parameters of {file}. What they have in common is in the
chapter “Across models”, which each of the books has.</p>
<table><thead><tr><th>book</th><th>compared with the others</th></tr></thead><tbody>
{rows}
</tbody></table></body></html>
"""


def _directory() -> Path:
    return store.ROOT / "_build" / "models"


def put(plan: Plan) -> Path:
    """Put the book that was built last among the others, as its model's; whole or not at all."""
    target = _directory() / zoo.slug(plan.model)
    half = target.with_name(f".{target.name}")
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(store.ROOT / "_build" / "html", half)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(half, target)
    return target


def write(plans: Sequence[Plan], failed: Mapping[str, str]) -> Path:
    """Write the page before the books.

    Args:
        plans: One for each model.
        failed: Model to why its book was not made now.
    """
    rows = []
    for plan in plans:
        try:
            entry, slug = zoo.resolve(plan.model), zoo.slug(plan.model)
            title = entry.title if isinstance(entry, zoo.Entry) else entry.name
            there = (_directory() / slug / "index.html").is_file()
        except UserError:
            title, slug, there = plan.model, "", False
        why, name, slug = (html.escape(x) for x in (failed.get(plan.model, ""), title, slug))
        cells = f'<a href="{slug}/index.html">{name}</a>' if there else f"{name}: none"
        if why:
            cells += f" (of an earlier run; now: {why})" if there else f": {why}"
        page = f"runs/{stages.ACROSS}.html"
        across = there and (_directory() / slug / page).is_file()
        cells += (
            f'</td><td><a href="{slug}/{page}">{name} across models</a>' if across else "</td><td>"
        )
        rows.append(f"<tr><td>{cells}</td></tr>")
    page = _PAGE.format(file=html.escape(plans[0].file.name), rows="\n".join(rows))
    return store.write_text(_directory() / "index.html", page)
