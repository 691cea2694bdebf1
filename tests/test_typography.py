"""A minus is a minus sign wherever people read a number, and a hyphen wherever a machine does."""

import re

import nbformat
import pytest
from bs4 import BeautifulSoup

from seqcirc_utils.typography import minus, minus_in_html, minus_in_markdown
from seqcirc_utils.workflow import stages
from seqcirc_utils.workflow.execution import clean

# Written otherwise than the rule: what a reader would take for a hyphen before a number.
HYPHEN = re.compile(r"(?:^|[\s(\[/±<>=:,])-[\d.]")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("-0.40", "−0.40"),
        ("-43% to 0%, [-1, -.5] (-2)", "−43% to 0%, [−1, −.5] (−2)"),
        ("23.3: -61.1 / -43.6", "23.3: −61.1 / −43.6"),
        ("p = 2.3e-05 and 1e-9", "p = 2.3e−05 and 1e−9"),
        ("-inf", "−inf"),
        ("SmolLM2-135M, gpt-2, 2026-11-29, 5-10, 12.3-12.4", None),
        ("top-5 of plus-2, a->b, 3%-5%, (a)-1, --force, -p seed", None),
        ("one – two, one-sided, mlp0->mlp2", None),
    ],
)
def test_hyphens_before_numbers_are_minus_signs(text, shown):
    assert minus(text) == (shown or text)
    assert minus(minus(text)) == minus(text)


def test_code_and_markup_stay():
    html = '<td style="margin:-5px" data-x="-1">-5</td><script>f(-1)</script><code>-1</code>&lt;-2'
    assert minus_in_html(html) == html.replace(">-5<", ">−5<").replace("&lt;-2", "&lt;−2")
    text = "a -1 `[-1.0]` <b title='-2'>-2</b>\n```\nx = -3\n```\n-4"
    assert minus_in_markdown(text) == ("a −1 `[-1.0]` <b title='-2'>−2</b>\n```\nx = -3\n```\n−4")


def seen(kind, data):
    """What a reader sees of an output, without code."""
    if kind == "text/markdown":
        data = re.sub(r"(?s)```.*?```|`[^`\n]*`", "", data)
    page = BeautifulSoup(data, "html.parser")
    for part in page(["script", "style", "svg", "code", "pre"]):
        part.decompose()
    return page.get_text("\n")


@pytest.mark.parametrize("stage", stages.STAGES)
def test_no_number_that_a_notebook_shows_has_a_hyphen(stage):
    book = nbformat.read(stages.notebook(stage), as_version=4)
    for cell in clean(book).cells:
        told = [seen("text/markdown", cell.source)] if cell.cell_type == "markdown" else []
        for output in cell.get("outputs", []):
            for kind, data in output.get("data", {}).items():
                if kind in ("text/html", "text/markdown"):
                    told.append(seen(kind, data))
        shown = cell.metadata.get("mystnb", {})
        told += [shown.get("image", {}).get("alt", ""), shown.get("figure", {}).get("caption", "")]
        assert [t for t in told if HYPHEN.search(t)] == []


def test_results_files_and_numbers_of_other_pages():
    output = nbformat.v4.new_output("display_data")
    output.data = {"application/papermill.record/text/plain": "'-4 points [-14, 7]'"}
    output.data |= {"text/plain": "-1", "application/json": "-1"}
    cell = nbformat.v4.new_code_cell("x = -1", outputs=[output])
    (kept,) = clean(nbformat.v4.new_notebook(cells=[cell])).cells
    assert kept.source == "x = -1"
    assert kept.outputs[0].data == {
        "application/papermill.record/text/plain": "'−4 points [−14, 7]'",
        "text/plain": "-1",
        "application/json": "-1",
    }
