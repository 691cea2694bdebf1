"""The searches: equal to the plain published procedure, minimal, and safe from interruption."""

import dataclasses
import hashlib
import itertools
import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from oracles import evaluator_of, plain_logits, plainly

from seqcirc_utils import store
from seqcirc_utils.ablation import pruning
from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.metrics import answer_log_prob, minus_kl
from seqcirc_utils.circuits import search as search_module
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import UserError


@pytest.fixture
def evaluator(any_tiny, sets, means):
    return evaluator_of(any_tiny, sets.discovery, means[any_tiny.facts.title])


@pytest.fixture(scope="module")
def gpt2_evaluator(gpt2, sets, means):
    return evaluator_of(gpt2, sets.discovery, means["gpt2"])


def naive_sweep(evaluator, threshold):
    """The published procedure, whole passes and plain hooks."""
    model, prompts = evaluator.model, evaluator.prompts
    whole = plainly(model, prompts, [], evaluator.replacement).mean()
    layers, heads = range(model.n_layers), range(model.n_heads)
    out, backward = [], True
    while True:
        before = list(out)
        for layer in reversed(layers) if backward else layers:
            own = [Component(layer, head) for head in heads]
            mlp = [Component(layer, None)]
            for component in mlp + own if backward else own + mlp:
                if component not in out:
                    score = plainly(model, prompts, [*out, component], evaluator.replacement)
                    if score.mean() / whole >= threshold:
                        out.append(component)
        if out == before:
            return set(components(model)) - set(out)
        backward = not backward


@pytest.mark.parametrize("threshold", [0.2, 0.8, 0.95])
def test_the_sweep_is_the_published_procedure(evaluator, threshold):
    found = search_module.sweep(evaluator, threshold)
    assert found.components == naive_sweep(evaluator, threshold)
    kept = evaluator.kept([found.components]).logit_diff.mean() / evaluator.intact.logit_diff.mean()
    assert found.score == pytest.approx(kept.item(), abs=1e-5) and found.score >= threshold


def test_the_sweeps_go_backward_mlp_first_then_forward_heads_first(gpt2_evaluator):
    shape = SimpleNamespace(n_layers=2, n_heads=2)
    sweeps = [
        (phase, " ".join(map(str, order)))
        for phase, order in itertools.islice(search_module.published_orders(shape), 3)
    ]
    backward = ("backward sweep", "mlp1 1.0 1.1 mlp0 0.0 0.1")
    assert sweeps == [backward, ("forward sweep", "0.0 0.1 mlp0 1.0 1.1 mlp1"), backward]
    # The search begins with the whole of the first, and goes on with what is left in the second.
    steps = search_module.sweep(gpt2_evaluator).frame()
    first, rest = steps[:15], steps[15:]
    names = [f"mlp{i} {i}.0 {i}.1 {i}.2 {i}.3" for i in (2, 1, 0)]
    assert " ".join(first["component"]) == " ".join(names)
    assert set(first["phase"]) == {"backward sweep"} and rest["phase"].iloc[0] == "forward sweep"
    gone = set(first.loc[first["removed"], "component"])
    left = [str(c) for c in components(gpt2_evaluator.model) if str(c) not in gone]
    forward = rest.loc[rest["phase"] == "forward sweep", "component"].tolist()
    assert forward[: len(left)] == left


def test_the_sweep_removes_some_and_keeps_some(gpt2_evaluator):
    assert 0 < len(search_module.sweep(gpt2_evaluator).components) < 15


@pytest.mark.parametrize("two_sided", [False, True])
def test_ranked_ends_where_every_component_is_needed(evaluator, two_sided):
    found = search_module.ranked(evaluator, 0.8, two_sided=two_sided)
    circuit = found.components
    whole = evaluator.intact.logit_diff.mean()
    least, most = 0.8, 1.2 if two_sided else float("inf")
    assert least <= found.score <= most
    for component in circuit:
        score = (evaluator.kept([circuit - {component}]).logit_diff.mean() / whole).item()
        assert not least <= score <= most, component
    assert list(found.frame().columns) == ["phase", "component", "size", "score", "removed"]


@pytest.mark.parametrize("metric", [answer_log_prob, minus_kl])
def test_a_search_by_another_metric_keeps_its_share_and_all_that_is_left_is_needed(
    evaluator, metric
):
    """By plain passes; random models know no sequence, so answers are what the parts raise most."""
    model, means, n = evaluator.model, evaluator.replacement, len(evaluator.prompts)
    passes = [
        plain_logits(model, evaluator.prompts, names, means).log_softmax(-1)
        for names in ([], components(model))
    ]
    asked = dataclasses.replace(evaluator.prompts, answer_ids=(passes[0] - passes[1]).argmax(-1))
    evaluator = evaluator.with_(answers=asked)

    def value(names):
        read = plain_logits(model, evaluator.prompts, names, means).log_softmax(-1)
        if metric is answer_log_prob:
            return read[range(n), asked.answer_ids].mean().item()
        return (passes[0].exp() * (read - passes[0])).sum(-1).mean().item()

    whole, empty = value([]), value(components(model))
    goal = search_module.Goal(metric, empty, "other metric")
    first = {c: value([c]) - whole for c in components(model)}
    found = search_module.ranked(evaluator, 0.6, goal=goal, first=first)
    out = set(components(model)) - found.components
    assert 0 < len(out) and found.components
    share = (value(out) - empty) / (whole - empty)
    assert found.score == pytest.approx(share, abs=1e-3) and share > 0.6 - 1e-3
    for component in found.components:
        left = (value(out | {component}) - empty) / (whole - empty)
        assert left < 0.6 + 1e-3, component


@pytest.mark.parametrize("search", [search_module.sweep, search_module.ranked])
def test_an_interrupted_search_continues(gpt2_evaluator, search, tmp_path, monkeypatch):
    whole = search(gpt2_evaluator)
    file = tmp_path / "search.json"
    real, calls = pruning.Pruning.try_without, []

    def failing(self, names):
        calls.append(names)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(self, names)

    monkeypatch.setattr(pruning.Pruning, "try_without", failing)
    with pytest.raises(KeyboardInterrupt):
        search(gpt2_evaluator, checkpoint=file)
    monkeypatch.setattr(pruning.Pruning, "try_without", real)
    again = search(gpt2_evaluator, checkpoint=file)
    assert again.components == whole.components
    assert [s["component"] for s in again.steps] == [s["component"] for s in whole.steps]
    monkeypatch.setattr(pruning.Pruning, "try_without", lambda *_: pytest.fail("computed again"))
    assert search(gpt2_evaluator, checkpoint=file).components == whole.components


def test_a_search_killed_ten_times_ends_the_same(gpt2_evaluator, tmp_path, monkeypatch):
    """By what it has done, not by the clock: a busy machine may take long for one trial."""
    whole = search_module.ranked(gpt2_evaluator)
    file, rng = tmp_path / "search.json", random.Random(0)
    real, written = search_module.Log.write, []

    def killed(at_once: bool) -> None:
        told, tells = os.pipe()

        def telling(self, **found):
            written.append(found)
            os.write(tells, b".")
            if len(written) > 1:
                signal.pause()  # the trial before is in the log, and no more will be
            real(self, **found)

        child = os.fork()
        if not child:
            try:
                torch.set_num_threads(1)
                monkeypatch.setattr(search_module.Log, "write", telling)
                search_module.ranked(gpt2_evaluator, checkpoint=file)
            finally:
                os._exit(0)
        os.close(tells)
        for _ in range(1 if at_once else 2):
            assert os.read(told, 1), "the search ended before it was killed"
        time.sleep(rng.uniform(0, 0.03) if at_once else 0)  # while it writes, or later
        os.kill(child, signal.SIGKILL)
        os.close(told)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL

    for i in range(10):
        killed(at_once=i % 2 == 0)
    assert 5 <= len(store.read_json(file)["steps"]) < len(whole.steps)
    again = search_module.ranked(gpt2_evaluator, checkpoint=file)
    assert again.components == whole.components and again.score == pytest.approx(whole.score)
    assert [s["component"] for s in again.steps] == [s["component"] for s in whole.steps]


def test_other_settings_or_a_damaged_file_begin_anew(gpt2_evaluator, tmp_path):
    file = tmp_path / "search.json"
    search_module.sweep(gpt2_evaluator, 0.5, checkpoint=file)
    assert search_module.sweep(gpt2_evaluator, 0.9, checkpoint=file).score >= 0.9
    file.write_text('{"key": ')
    assert search_module.sweep(gpt2_evaluator, 0.9, checkpoint=file).score >= 0.9


def test_a_log_of_other_code_is_not_continued(gpt2_evaluator, tmp_path, monkeypatch):
    file = tmp_path / "search.json"
    search_module.ranked(gpt2_evaluator, checkpoint=file)
    saved = store.read_json(file)
    saved["steps"][-1]["score"] = 0.125  # what an older version, with a fault, may have found
    store.write_json(file, saved)
    assert search_module.ranked(gpt2_evaluator, checkpoint=file).steps[-1]["score"] == 0.125
    monkeypatch.setattr(search_module, "_CODE", "other")
    assert search_module.ranked(gpt2_evaluator, checkpoint=file).steps[-1]["score"] != 0.125


@pytest.mark.parametrize("search", [search_module.sweep, search_module.ranked])
def test_what_means_nothing_is_refused(gpt2, sets, means, gpt2_evaluator, search):
    for threshold in (0, -0.1, 1.01, float("nan")):
        with pytest.raises(UserError, match="threshold"):
            search(gpt2_evaluator, threshold)
    prompts = gpt2_evaluator.prompts
    swapped = dataclasses.replace(prompts, answer_ids=prompts.last_ids, last_ids=prompts.answer_ids)
    with pytest.raises(UserError, match="logit difference"):
        search(Evaluator(gpt2, swapped, means["gpt2"]))
    with pytest.raises(UserError, match="no prompts"):
        Evaluator(gpt2, prompts[[]], means["gpt2"])
    broken = dataclasses.replace(means["gpt2"], mlp=means["gpt2"].mlp * float("nan"))
    with pytest.raises(UserError, match="NaN"):
        search(Evaluator(gpt2, prompts, broken))


def test_a_log_belongs_to_the_code_that_began_it():
    """A hash of all modules that decide a trial: none is left out, and none of nothing."""
    package = Path(search_module.__file__).parents[1]
    rooms = [sorted((package / room).glob("*.py")) for room in ("ablation", "circuits", "prompts")]
    assert all(len(files) > 5 for files in rooms)
    text = b"".join(path.read_bytes() for files in rooms for path in files)
    assert hashlib.sha256(text).hexdigest() == search_module._CODE
