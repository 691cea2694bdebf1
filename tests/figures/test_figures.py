"""Figures are drawn from results, without warnings, and say what they should."""

import re
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from seqcirc_utils.components import Component
from seqcirc_utils.figures import (
    common,
    logit_attribution,
    methods,
    style,
    task_construction,
)
from seqcirc_utils.workflow import stages

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def frame():
    names = [Component(layer, head) for layer in range(3) for head in (0, 1, None)]
    effect = RNG.normal(size=len(names))
    return pd.DataFrame(
        {
            "component": list(map(str, names)),
            "layer": [c.layer for c in names],
            "head": pd.array([c.head for c in names], dtype="Int64"),
            "effect": effect,
            "low": effect - 0.1,
            "high": effect + 0.2,
        }
    )


def test_grid_puts_every_component_in_its_place(frame):
    grid = common.component_grid(frame, "effect")
    assert grid.shape == (3, 3)
    by_name = frame.set_index("component")["effect"]
    assert grid[2, 1] == by_name["2.1"] and grid[1, 2] == by_name["mlp1"]


def test_every_figure_draws(frame):
    score = {"accuracy": [0.5, 1], "accuracy_low": [0.2, 0.6], "accuracy_high": [0.8, 1]}
    score |= {f"logit_diff{s}": [1.0, 2.0] for s in ("", "_low", "_high")}
    groups = {"member 1": [True, False], "in": [False] * 2, "end": [False, True]}
    groups["other"] = [False] * 2
    grid = common.component_grid(frame, "effect")
    square = pd.DataFrame(RNG.normal(size=(2, 2)), index=["a", "b"], columns=["a", "b"])
    figures = [
        task_construction.token_strip(["May", " end"], groups),
        task_construction.accuracy_panels(pd.DataFrame({"x": ["a", "b"]} | score), "x", "start"),
        logit_attribution.lens_trajectory(
            {"last member": RNG.random((4, 5)), "other": RNG.random((4, 5))}
        ),
        logit_attribution.lens_heatmaps(
            {"one": RNG.random((4, 2)), "two": RNG.random((4, 2))}, ["a", "b"]
        ),
        common.component_heatmaps({"one": grid, "two": grid}, "logits", percent=True),
        common.component_bars(frame, 4, "logits"),
        common.agreement([1, 2, 3], [1, 2, 2], ["a", "b", "c"], ("x", "y")),
        common.table_heatmap(square, "value"),
    ]
    for figure in figures:
        assert isinstance(figure, Figure)
        for axis in figure.axes:
            assert axis.has_data() or axis.texts


def test_heat_maps_show_no_negative_zero():
    table = pd.DataFrame([[-0.001, -0.4], [0.2, -12.0]])
    texts = [t.get_text() for t in common.table_heatmap(table, "value", ".0f").axes[0].texts]
    assert texts == ["0", "0", "0", "−12"]


def test_map_frames_what_all_circuits_share():
    shared = {Component(0, 0), Component(2, None)}
    circuits = {"digits": shared | {Component(1, 1)}, "months": shared | {Component(0, 1)}}
    figure = common.circuit_map(circuits, n_layers=3, n_heads=2)
    frames = [p for p in figure.axes[0].patches if p.get_linewidth() == 1.4]
    assert sorted((round(p.get_x()), round(p.get_y())) for p in frames) == [(0, 0), (3, 2)]
    stripes = [p for p in figure.axes[0].patches if abs(p.get_width() - 0.45) < 1e-9]
    assert len(stripes) == 6


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    style.use_style()
    for name in ("a.svg", "b.svg"):
        style.save(common.circuit_map({"digits": {Component(0, 0)}}, 2, 2), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_tasks_keep_their_colours():
    assert (
        style.task_colours(["months"])["months"]
        == style.task_colours(["digits", "months"])["months"]
    )
    assert len(set(style.task_colours(["digits", "number_words", "months"]).values())) == 3


def test_what_a_figure_says_has_minus_signs():
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots()
    axis.plot([0, 1], [-1, 1], label="numbers, -1")
    axis.set(title="at -2", xlabel="SmolLM2-135M (-3)")
    axis.set_yticks([-1, 1], ["months, -1", "5-10"])
    axis.annotate("-4%", (0, 0))
    axis.legend()
    style.closed(figure)
    figure.canvas.draw()
    said = [t.get_text() for t in figure.findobj(lambda part: hasattr(part, "get_text"))]
    wanted = {"numbers, −1", "at −2", "SmolLM2-135M (−3)", "months, −1", "5-10", "−4%"}
    assert wanted <= set(said)


def test_names_of_points_at_one_place_do_not_lie_on_each_other():
    figure, axis = plt.subplots()
    axis.set(xlim=(0, 10), ylim=(0, 10))
    figure.draw_without_rendering()
    methods._write_names(axis, [(5, 5, name, "black") for name in ("first", "second", "third")])
    methods._write_names(axis, [(1, 9, "apart", "black")])
    ups = {text.get_text(): text.xyann[1] for text in axis.texts}
    assert ups["apart"] == 4 and sorted(ups.values())[-3:] == [4, 4, 12]
    near = sorted(ups[name] for name in ("first", "second", "third"))
    assert all(b - a >= 8 for a, b in zip(near, near[1:], strict=False))
    plt.close(figure)


def test_tables_of_the_committed_notebooks_have_names():
    """A styled table without one gets other ids in every run, and a page differs for nothing."""
    drawn = [stages.notebook(name).read_text() for name in stages.STAGES]
    named = {name for text in drawn for name in re.findall(r'id=\\"T_(\w+?)\\"', text)}
    assert "methods" in named and not [n for n in named if re.fullmatch("[0-9a-f]{5}", n)]
