"""A figure's two forms: as wide as a page, and as narrow as a phone.

A figure of three panels in a row is no figure on a phone, where it would be shown at a third of its
size. So each function that draws is marked :func:`two_forms` and runs twice, the second time for a
phone: panels then stand below one another (:func:`subplots`), and texts keep their size. What it
returns is the wide figure, which holds the narrow one and gives both to Jupyter: the wide one as
the picture, the narrow one in the picture's metadata, where the book's build finds it.
"""

import functools
import io
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from textwrap import fill
from typing import Any, ParamSpec, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from seqcirc_utils import store
from seqcirc_utils.figures import style

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

PHONE = 3.5
"""Inches that a phone 390 px wide gives a figure, at the size at which it is drawn."""
NARROW = "narrow"
"""Under this name the narrow form stands in the metadata of a notebook's output."""
SVG = "image/svg+xml"

_for_phone: ContextVar[bool] = ContextVar("for_phone", default=False)


class TwoForms(Figure):
    """A figure as wide as a page that holds its narrow form, if it has one."""

    narrow: Figure | None = None

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        """What Jupyter keeps beside the picture that it draws itself: nothing but metadata."""
        return {}, {SVG: {NARROW: as_svg(self.narrow)}} if self.narrow else {}


def as_svg(figure: Figure) -> str:
    """The figure as the text of an SVG file, the same whenever it is drawn."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return file.getvalue()


def save(figure: Figure, stem: Path) -> None:
    """Write a figure as ``STEM.svg`` and ``STEM.png``, and its form for phones, if it has one."""
    for suffix in (".svg", ".png"):
        style.save(figure, stem.with_suffix(suffix))
    if narrow := getattr(figure, "narrow", None):
        store.write_text(stem.with_suffix(".narrow.svg"), as_svg(narrow))


def for_phone() -> bool:
    """Whether the narrow form is being drawn."""
    return _for_phone.get()


def two_forms(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw a figure twice: the function runs again for a phone, and the first figure keeps that."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **named: P.kwargs) -> R:
        figure: Any = draw(*args, **named)  # some functions have a sentence in its place
        if isinstance(figure, TwoForms) and not for_phone():
            token = _for_phone.set(True)
            try:
                with plt.rc_context(sns.plotting_context("paper", font_scale=0.85)):
                    figure.narrow = draw(*args, **named)
            finally:
                _for_phone.reset(token)
        return figure

    return drawn


def either(page: T, phone: T) -> T:
    """What is asked for a page, or for a phone."""
    return phone if for_phone() else page


def wrapped(text: str, width: int = 42) -> str:
    """A label, broken into lines on a phone."""
    return fill(text, width) if for_phone() else text


def subplots(
    rows: int = 1,
    columns: int = 1,
    *,
    size: tuple[float, float],
    phone: float,
    stack: bool = True,
    width: float = PHONE,
    **named: Any,
) -> tuple[TwoForms, np.ndarray]:
    """A figure and its axes, which stand below one another on a phone.

    Args:
        rows: How many rows of axes a page has.
        columns: How many columns.
        size: Width and height on a page, in inches.
        phone: Height on a phone, in inches.
        stack: Whether they do; no where panels share their rows.
        width: Width on a phone, in inches; what is wider than a phone scrolls sideways there.
        named: What matplotlib's ``subplots`` takes besides.

    Returns:
        The figure, and its axes ``[row * columns + column]`` in reading order.
    """
    if for_phone():
        size = width, phone
        rows, columns = (rows * columns, 1) if stack else (rows, columns)
    named = {"layout": "constrained", "squeeze": False} | named
    figure, axes = plt.subplots(rows, columns, figsize=size, FigureClass=TwoForms, **named)
    return figure, axes.ravel()
