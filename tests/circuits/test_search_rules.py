"""The searches' rules, traced by hand on made-up scores."""

import copy
import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch
from oracles import evaluator_of

from seqcirc_utils.ablation.evaluator import logit_difference
from seqcirc_utils.circuits import search as search_module
from seqcirc_utils.components import Component
from seqcirc_utils.errors import CannotDo

SHAPE = SimpleNamespace(n_layers=1, n_heads=3)


class Made:
    """A pruning in which every component has an effect of its own, and effects add up."""

    effects = {}

    def __init__(self, evaluator, removed=(), metric=None):
        self.score = torch.tensor([3.0, 5.0]) + sum(self.effects[str(c)] for c in removed)

    def try_without(self, names):
        self.trial = self.score + sum(self.effects[str(c)] for c in names)
        return self.trial

    def accept(self):
        self.score = self.trial


@pytest.fixture
def swept(monkeypatch):
    """A sweep of one layer of three heads; the whole model's score is 4."""
    monkeypatch.setattr(search_module, "Pruning", Made)
    monkeypatch.setattr(
        search_module, "Log", lambda *_: SimpleNamespace(read=dict, write=lambda **_: None)
    )
    intact = torch.tensor([3.0, 5.0])
    evaluator = SimpleNamespace(model=SHAPE, intact=SimpleNamespace(logit_diff=intact))

    def sweep(effects, *threshold, **options):
        monkeypatch.setattr(Made, "effects", effects)
        found = search_module.sweep(evaluator, *threshold, **options)
        return found, [(s["component"], s["score"], s["removed"]) for s in found.steps]

    sweep.evaluator = evaluator
    return sweep


EFFECTS = {"mlp0": 1.25, "0.0": -1.0, "0.1": -0.25, "0.2": 2.0}


def test_a_share_that_is_just_kept_is_kept_and_more_than_all_is_no_fault(swept):
    found, steps = swept({"mlp0": 0.5, "0.0": -1.5, "0.1": -0.25, "0.2": 0.125}, 0.75)
    assert steps[:4] == [
        ("mlp0", 1.125, True),
        ("0.0", 0.75, True),
        ("0.1", 0.6875, False),
        ("0.2", 0.78125, True),
    ]
    # The forward sweep finds nothing more to remove: the end.
    assert steps[4:] == [("0.1", 0.71875, False)] and found.trials == 5
    assert found.components == {Component(0, 1)} and found.score == 0.78125
    found, steps = swept(EFFECTS, 0.75)
    assert [score for _, score, _ in steps] == [1.3125, 1.0625, 1.0, 1.5]
    assert found.components == set() and found.score == 1.5


def test_the_two_sided_rule_refuses_what_overshoots(swept):
    found, steps = swept(EFFECTS, 0.75, two_sided=True)
    assert steps == [
        ("mlp0", 1.3125, False),
        ("0.0", 0.75, True),
        ("0.1", 0.6875, False),
        ("0.2", 1.25, True),
        ("0.1", 1.1875, True),  # forward
        ("mlp0", 1.5, False),
        ("mlp0", 1.5, False),  # backward
    ]
    assert found.components == {Component(0, None)} and found.score == 1.1875


def test_where_nothing_goes_the_circuit_is_the_model(swept):
    found, steps = swept(dict.fromkeys(EFFECTS, -0.001), 1)
    assert found.score == 1 and len(found.components) == len(steps) == 4


def test_random_sweeps_are_drawn_by_their_generator():
    def drawn(seed):
        orders = search_module.shuffled_orders(torch.Generator().manual_seed(seed), SHAPE)
        return [order for _, order in itertools.islice(orders, 3)]

    assert drawn(0) == drawn(0) != drawn(1) and len(set(map(tuple, drawn(0)))) > 1
    assert all(sorted(map(str, order)) == sorted(EFFECTS) for order in drawn(0))


def test_what_a_search_keeps_when_nothing_is_said(swept, monkeypatch):
    """80%, one-sided; groups of a quarter; eight prompts behind an estimate."""
    for cost, gone in ((-0.79, True), (-0.81, False)):
        found, _ = swept({"mlp0": cost, "0.0": -9, "0.1": -9, "0.2": -9})
        assert (Component(0, None) not in found.components) == gone
    _, steps = swept({"mlp0": 9, "0.0": -9, "0.1": -9, "0.2": -9})
    assert steps[0][2]  # far more than all
    asked = []

    def groups(search, estimate, share, two_sided):
        asked.append((share, two_sided, search.least, search.most))
        estimate()

    evaluator = swept.evaluator
    evaluator.estimate = lambda out, rows, metric: asked.append((out, rows, metric))
    monkeypatch.setattr(search_module, "remove_in_groups", groups)
    search_module.ranked(evaluator)
    assert asked == [(0.25, False, 0.8, float("inf")), (set(), 8, logit_difference)]


def test_a_share_of_what_the_whole_is_ahead_of_the_empty_circuit(swept):
    """The whole has 4, the empty circuit 3: without a part that costs .25, .75 are left."""
    goal = search_module.Goal(lambda *_: None, 3.0, "made")
    swept.evaluator.estimate = lambda *_: dict.fromkeys(search_module.components(SHAPE), 0.0)
    swept({"0.0": -0.3, "0.1": -0.5, "0.2": 0.125, "mlp0": -0.25})
    found = search_module.ranked(swept.evaluator, 0.75, goal=goal)
    tried = [(s["component"], pytest.approx(s["score"]), s["removed"]) for s in found.steps]
    # What is idle comes before what costs; here all is called idle, so that 0.0 is tried twice.
    assert tried[1:5] == [
        ("0.0", 0.7, False),
        ("0.1", 0.5, False),
        ("0.2", 1.125, True),
        ("mlp0", 0.875, True),
    ]
    assert set(map(str, found.components)) == {"0.0", "0.1"} and found.score == tried[4][1]
    with pytest.raises(CannotDo, match="not ahead of the empty circuit by the made"):
        search_module.ranked(swept.evaluator, goal=dataclasses.replace(goal, empty=4.0))


def test_the_first_estimate_may_be_given(swept, monkeypatch):
    orders = []

    def groups(search, estimate, share, two_sided):
        orders.append(estimate())
        search.out = {Component(0, 0)}
        orders.append(estimate())

    swept.evaluator.estimate = lambda out, *_: set(out)
    monkeypatch.setattr(search_module, "remove_in_groups", groups)
    search_module.ranked(swept.evaluator, first={Component(0, 1): -1.0})
    assert orders == [{Component(0, 1): -1.0}, {Component(0, 0)}]


class Heap:
    """A search for 80% over made-up things whose effects add up; the estimate is wrong about f."""

    true = {"g": 0.1, "h": 0.1, "w": -0.01, "x": -0.011, "y": -0.012, "z": -0.013}
    true |= {"a": -0.3, "b": -0.31, "c": -0.32, "d": -0.305, "e": -0.33, "f": 0.3}
    true |= dict.fromkeys("ijkl", -0.4)
    wrong = dict(zip("abcdefijkl", (i / -100 for i in range(30, 40)), strict=True))

    def __init__(self):
        self.gone, self.steps, self.estimates = [], [], 0

    def left(self):
        return [c for c in self.true if c not in self.gone]

    def estimate(self):
        self.estimates += 1
        return self.true | self.wrong

    def remove(self, names, phase):
        assert phase == ("groups" if len(names) > 1 else "one by one")
        score = 1 + sum(self.true[c] for c in [*self.gone, *names])
        self.steps.append({"component": "".join(names), "score": score})
        self.gone += names if score >= 0.8 else []
        return score >= 0.8

    @property
    def tried(self):
        return " ".join(s["component"] for s in self.steps)


# From the group of five on, which fails. a goes; twice as many fail; one by one b to e fail, f goes
# and makes room. Two of the others fail, and each alone.
TAIL = "abcde a bc b c d e f ij i j k l "
# What failed before f went is tried again, the nearest miss first. d goes. Then the rest, and at
# last what had failed before d went.
TAIL += "d bc b c e i j k l"


def test_groups_grow_and_shrink_as_the_docstring_says():
    heap = Heap()
    assert search_module.remove_in_groups(heap, heap.estimate, 0.5)
    # Half of all, the idle first: fails. The same with what speaks against the answer first: fails.
    # A quarter goes, then twice as many; of ten that are left again half.
    assert heap.tried == "wxyzghab ghwxyzab gh wxyz " + TAIL
    assert heap.estimates == 4  # at first, for the new order, after each group that went
    assert heap.left() == list("bceijkl")


def test_the_two_sided_search_goes_on_with_the_idle():
    heap = Heap()
    assert search_module.remove_in_groups(heap, heap.estimate, 0.5, two_sided=True)
    assert heap.tried == "wxyzghab wx yzgh " + TAIL and heap.estimates == 3


def test_a_limit_on_single_trials_ends_the_search_and_says_so():
    heap = Heap()
    assert not search_module.remove_in_groups(heap, heap.estimate, 0.5, one_by_one=3)
    assert heap.tried == "wxyzghab ghwxyzab gh wxyz abcde a bc b c"
    assert search_module.remove_in_groups(Heap(), heap.estimate, 0.5, one_by_one=18)
    assert not search_module.remove_in_groups(Heap(), heap.estimate, 0.5, one_by_one=17)


def test_a_log_belongs_to_model_prompts_answers_replacement_and_settings(gpt2, sets, means):
    new = means["gpt2"]
    evaluator = evaluator_of(gpt2, sets.discovery, new)

    def other(**changes):
        changed = copy.copy(evaluator)
        vars(changed).update(changes)
        return changed

    answers = dataclasses.replace(evaluator.answers, answer_ids=evaluator.answers.last_ids)
    lasts = dataclasses.replace(evaluator.answers, last_ids=evaluator.answers.answer_ids)
    facts = dataclasses.replace(gpt2.facts, sha256="0")
    others = [
        (evaluator, "sweep", 0.8),
        (evaluator, "ranked", 0.8),
        (evaluator, "sweep", 0.9),
        (other(prompts=sets.evaluation), "sweep", 0.8),
        (other(answers=answers), "sweep", 0.8),
        (other(answers=lasts), "sweep", 0.8),
        (other(replacement=dataclasses.replace(new, z=new.z + 1)), "sweep", 0.8),
        (other(replacement=dataclasses.replace(new, mlp=new.mlp + 1)), "sweep", 0.8),
        (other(model=dataclasses.replace(gpt2, facts=facts)), "sweep", 0.8),
    ]
    keys = [search_module.Log(None, *one).key for one in others]
    assert len(set(keys)) == len(keys)
    assert keys[0] == search_module.Log(None, copy.copy(evaluator), "sweep", 0.8).key
