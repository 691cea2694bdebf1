"""Colours, and how a figure is set up, closed and saved."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns
from IPython.display import Markdown
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter
from matplotlib_inline.backend_inline import set_matplotlib_formats

from seqcirc_utils.prompts.sequences import TASKS
from seqcirc_utils.store import writing
from seqcirc_utils.typography import minus

# Okabe and Ito's palette: told apart with any colour vision.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
ANSWER, LAST, NEUTRAL = "#0072B2", "#D55E00", "#777777"
DIVERGING = "RdBu"  # red: lowers the score; blue: raises it


def use_style() -> None:
    """Set the book's look; call once per notebook."""
    sns.set_theme(context="notebook", style="ticks", font_scale=0.9)
    plt.rcParams.update(
        {
            "figure.facecolor": "white",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "axes.titlelocation": "left",
            "legend.frameon": False,
            "savefig.bbox": "tight",
            "svg.hashsalt": "seqcirc",  # the same figure gives the same bytes
            "svg.fonttype": "path",
        }
    )
    set_matplotlib_formats("svg", metadata={"Date": None})


def task_colours(tasks: Sequence[str]) -> dict[str, str]:
    """One colour per task, the same in every figure."""
    order = [*TASKS, *(t for t in tasks if t not in TASKS)]
    return {task: OKABE_ITO[order.index(task) % len(OKABE_ITO)] for task in tasks}


def save(figure: Figure, path: Path | str) -> Path:
    """Write a figure to a file, whole or not at all; the suffix says the format."""
    with writing(path) as temporary:
        figure.savefig(temporary, metadata={"Date": None} if Path(path).suffix == ".svg" else None)
    return Path(path)


def closed(figure: Figure) -> Figure:
    """The figure, for a cell's value to show it; left open, Jupyter would show it twice.

    Its texts get minus signs, as matplotlib gives them to the ticks that it numbers itself.
    """
    for text in figure.findobj(Text):
        text.set_text(minus(text.get_text()))
    for axis in figure.axes:
        for side in (axis.xaxis, axis.yaxis):
            named = side.get_major_formatter()
            if isinstance(named, FixedFormatter):
                named.seq = [minus(str(label)) for label in named.seq]
    plt.close(figure)
    return figure


def many(n: int, what: str) -> str:
    """A count with its noun: ``1 head``, ``2 heads``."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def bounded(values: Iterable[float], unit: str = "%") -> str:
    """A share with its interval, in percent or another word for it: ``58% [12, 94]``."""
    mean, low, high = (f"{100 * value:z.0f}" for value in values)
    return f"{mean}{unit} [{low}, {high}]"


def enumerated(names: Iterable[str]) -> str:
    """Names in a sentence: ``a, b and c``."""
    *first, last = [*names] or ["none"]
    return f"{', '.join(first)} and {last}" if first else last


def in_short(text: str, points: Sequence[str] = ()) -> Markdown:
    """A chapter's finding, as it stands at the chapter's head, with points under it."""
    listed = ["", *(f"- {point}" for point in points)] if points else []
    return Markdown("\n".join(f"> {line}".rstrip() for line in [f"**In short.** {text}", *listed]))
