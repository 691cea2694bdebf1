"""Figures have two forms, a wide and a narrow one, and letters in both that can be read."""

import ast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from letters import LEAST, ROOM, least, sizes

from seqcirc_utils import store
from seqcirc_utils.components import Component
from seqcirc_utils.figures import (
    common,
    forms,
    ground_truth,
    logit_attribution,
    style,
    task_construction,
)

RNG = np.random.default_rng(0)
GRID = RNG.normal(size=(30, 10))
MODULES = sorted((store.ROOT / "seqcirc_utils" / "figures").glob("*.py"))


@pytest.fixture(autouse=True)
def look():
    with plt.rc_context():
        style.use_style()
        yield


def heatmaps():
    return common.component_heatmaps({"one": GRID, "two": -GRID}, "% of the logit difference")


def drawn():
    """A figure of each kind that several chapters draw, as large as the default model's."""
    names = [Component(i, h) for i in range(30) for h in [*range(9), None]]
    some, others = set(names[::4]), set(names[::3])
    table = pd.DataFrame(RNG.normal(size=(8, 12)) * 100).rename(columns="receiver {}".format)
    table.index = [f"a row of {i} with a long name" for i in range(8)]
    effects = pd.DataFrame({"component": list(map(str, names)), "effect": 1.0})
    effects = effects.assign(low=0.5, high=1.5)
    groups = {g: [i % 5 == j for i in range(30)] for j, g in enumerate("abcde")}
    roles = {"digits": dict.fromkeys(some, "copy"), "months": dict.fromkeys(others, "copy")}
    circuits = {"digits": some, "months": others, "number_words": some}
    scores = {"x": [f"member {i}" for i in range(8)]}
    for name in ("accuracy", "logit_diff"):
        scores |= {f"{name}{end}": np.full(8, 0.5) for end in ("", "_low", "_high")}
    return {
        "bars": common.component_bars(effects, 20, "change (% of the whole model)"),
        "circuits": common.circuit_map(
            circuits, 30, 9, roles=roles, role_letters={"copy": "C", "inhibition": "I"}
        ),
        "heat maps": heatmaps(),
        "lens": logit_attribution.lens_heatmaps(
            {"one": RNG.random((31, 5)), "two": RNG.random((31, 5))}, list("abcde")
        ),
        "panels": task_construction.accuracy_panels(pd.DataFrame(scores), "x", "start"),
        "planted": ground_truth.anatomy(),
        "scatter": common.agreement([1, 2, 3], [1, 2, 2], ["a", "b", "c"], ("x", "y")),
        "table": common.table_heatmap(table, "value", ".0f"),
        "tokens": task_construction.token_strip(["token"] * 30, groups),
    }


def test_panels_in_a_row_stand_below_one_another_on_a_phone():
    figure = heatmaps()
    for form, across in ((figure, True), (figure.narrow, False)):
        form.draw_without_rendering()
        first, second = (axis.get_position() for axis in form.axes[:2])
        assert (second.x0 > first.x1) == across
        assert (second.y1 < first.y0) != across
    assert [a.get_title() for a in figure.axes] == [a.get_title() for a in figure.narrow.axes]
    assert figure.narrow.get_figwidth() == forms.PHONE
    assert getattr(figure.narrow, "narrow", None) is None and not forms.for_phone()


def test_the_letters_of_narrow_figures_can_be_read():
    for name, figure in drawn().items():
        svg = forms.as_svg(figure.narrow)
        width, points = sizes(svg)
        natural = width * 4 / 3
        assert natural < 1.1 * ROOM, f"{name} is wider than a phone"
        assert len(points) > 3 and least(svg, min(natural, ROOM)) >= LEAST, name
        assert len(points) >= 0.8 * len(sizes(forms.as_svg(figure))[1]), f"{name} lost texts"


def test_a_map_of_many_heads_scrolls_instead_of_shrinking():
    circuit = {Component(0, h) for h in range(32)}
    narrow = common.circuit_map({"digits": circuit, "months": circuit}, 2, 32).narrow
    assert narrow.get_figwidth() > 2 * forms.PHONE


def test_jupyter_keeps_the_wide_form_as_the_picture_and_the_narrow_one_beside_it():
    formatter = InteractiveShell.instance().display_formatter
    figure = heatmaps()
    data, metadata = formatter.format(figure)
    assert set(data) == {forms.SVG, "text/plain"}  # what any front end shows, and nothing else
    assert set(metadata) == {forms.SVG}
    narrow = metadata[forms.SVG][forms.NARROW]
    assert sizes(narrow)[0] < 0.5 * sizes(data[forms.SVG])[0]
    assert narrow == formatter.format(heatmaps())[1][forms.SVG][forms.NARROW]
    bare, _ = plt.subplots(FigureClass=forms.TwoForms)
    plt.close(bare)
    assert formatter.format(bare)[1] == {}


def test_a_figure_is_still_matplotlibs_own(tmp_path):
    figure = heatmaps()
    figure.suptitle("mine")
    assert style.save(figure, tmp_path / "a.png").stat().st_size
    assert not plt.get_fignums()  # neither form is left open


def test_every_function_that_draws_has_two_forms():
    marked = 0
    for path in MODULES:
        if path.name == "forms.py":
            continue
        assert "plt.subplots" not in path.read_text(), f"{path.name}: a figure of one form"
        for function in ast.parse(path.read_text()).body:
            if "forms.subplots(" in ast.unparse(function):
                marks = [ast.unparse(d) for d in function.decorator_list]
                assert marks and marks[-1] == "forms.two_forms", f"{path.name}: {function.name}"
                marked += 1
    assert marked > 30
