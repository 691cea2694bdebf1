"""Patching as a chapter: a model whose strongest heads are all of one layer has no paths."""

import pytest
from IPython.display import Markdown
from matplotlib.figure import Figure

from seqcirc_utils.chapters import patching
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.figures import patching as figures

PARAMETERS = {"task": "months", "templates": ["born"], "n_prompts": 4, "n_means": 4, "seed": 0}


@pytest.mark.parametrize("n_top", [1, 12])
def test_strongest_heads_of_one_layer_leave_the_rest(gpt2, monkeypatch, n_top):
    # A random model cannot do the task.
    monkeypatch.setattr(patching, "positive_baseline", lambda values, what: values.mean().item())
    at = Setting(PARAMETERS | {"n_top": n_top, "n_pairs": 1}, model=gpt2)
    found = patching.Patching.measure(at)
    assert len(found.exact) == n_top
    if n_top == 1:
        assert found.missing == {"paths": "the strongest heads are all of one layer."}
        shown = figures.path_map(found)
        assert isinstance(shown, Markdown) and "of one layer" in shown.data
    else:  # all heads
        assert found.missing == {} and len(found.paths) == 3 * n_paths(found)
        assert isinstance(figures.path_map(found), Figure)
    assert isinstance(figures.position_map(found), Figure)


def n_paths(found):
    """Pairs of a sender and a head of a later layer."""
    senders = {name: int(name.split(".")[0]) for name in found.paths["sender"]}
    return sum(4 * (2 - layer) for layer in senders.values())
