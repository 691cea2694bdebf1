"""How an answer looks: folded, until the reader has had a guess.

HTML's own ``details`` opens by mouse, touch and keyboard, and tells a screen reader whether it is
open; it folds in a notebook as in the book, and the book opens it on paper.
"""

import base64
import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from seqcirc_utils.figures.common import absent
from seqcirc_utils.typography import minus_in_html


@dataclass(frozen=True)
class Picture:
    """A figure, with what it shows in words for those who do not see it."""

    figure: Figure
    alt: str


Part = str | pd.DataFrame | Picture
"""A paragraph, a table whose first column names its rows, or a figure."""


def answered(*sections: str) -> Callable[[Callable[[Any], Sequence[Part]]], Callable[[Any], HTML]]:
    """Fold what a function answers; where sections that it reads are missing, fold the reason."""

    def decorate(answer: Callable[[Any], Sequence[Part]]) -> Callable[[Any], HTML]:
        @functools.wraps(answer)
        def shown(found: Any) -> HTML:
            reason = absent(found, *sections) if sections else None
            return folded(answer(found) if reason is None else [str(reason.data)])

        return shown

    return decorate


def folded(parts: Sequence[Part]) -> HTML:
    """Paragraphs, tables and figures behind “Show the answer”."""
    inside = minus_in_html("\n".join(map(_html, parts)))
    return HTML(
        f'<details class="answer">\n<summary>Show the answer</summary>\n{inside}\n</details>'
    )


def _html(part: Part) -> str:
    if isinstance(part, str):
        return f"<p>{escape(part, quote=False)}</p>"
    if isinstance(part, pd.DataFrame):
        table = part.to_html(index=False, border=0, justify="left")
        # It scrolls on a phone, by key too.
        return (
            f'<div class="answer-table" tabindex="0" role="group" aria-label="Table">{table}</div>'
        )
    drawn = io.BytesIO()
    part.figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = base64.b64encode(drawn.getvalue()).decode()
    return f'<p><img alt="{escape(part.alt)}" src="data:image/svg+xml;base64,{text}"></p>'


def listed(names: Sequence[Any], none: str = "none") -> str:
    """Names with commas between; a word where there are none."""
    return ", ".join(map(str, names)) or none
