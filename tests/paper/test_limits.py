"""The claims' limits: published before the results, and held to the digit on both sides."""

import copy
import shutil

import numpy as np
import pytest
from test_claims import GPT2, World

from seqcirc_utils import store
from seqcirc_utils.paper import claims
from seqcirc_utils.paper.claims import NOT_SUPPORTED, SUPPORTED
from seqcirc_utils.paper.evidence import CIRCUITS, TASKS

LIMITS = {
    **{"C1": {"most": 0.25}, "C2": {"p": 0.05}, "C3": {"least": 27, "other": 25}},
    **{"C4": {"least": 18}, "C5": {"mean": 5, "hits": 11}, "C6": {}},
    **{"C7": {"least": 100, "most": 45}, "C8": {"least": 80, "most": 60}, "C9": {"most": 0}},
    **{"C10": {"times": 2}, "C11": {"most": 0.5}, "C12": {}, "C13": {"least": 10, "times": 3}},
    **{"C14": {"least": 50}, "C15": {"times": 10}, "C16": {"least": 25, "p": 0.01}, "C17": {}},
    **{"C18": {"least": 50}, "C19": {"least": 7}, "C20": {"q": 0.05}, "C21": {"p": 0.05}},
    **{"C22": {}, "C23": {"most": 10, "least": 50}, "C24": {"gap": 20, "p": 0.05}},
    **{"C25": {"p": 0.05}, "C26": {"most": 50, "p": 0.05}, "C27": {}},
}
EFFECTS, COSTS, ROLES = "03_patching.csv", "04_circuit_discovery.csv", "05_component_roles.csv"
LOOKS, OV = "05_component_roles.attention.csv", "05_component_roles.ov.csv"
KEPT, BEYOND = "06_cross_task.csv", "07_generalisation.csv"


def test_the_limits_are_those_set_before_the_results():
    assert {claim: rule.judge.keywords for claim, rule in claims.RULES.items()} == LIMITS


def to(name, column, of=None, /, **where):
    """A change of a table's column to a value."""
    return lambda world, value: world.set(name, column, value, of, **where)


def _heads(world, count):
    names = [[i, j] for i in range(6) for j in range(6)][:count]
    world.circuit(lambda c: c.update(heads=names), "months", "circuit.published.json")


def _kept(world, high):
    def change(circuit):
        circuit["faithfulness"]["high"] = high

    world.circuit(change, "number_words", "circuit.published.json")


def _drop(world, value):
    world.set(EFFECTS, "ablation", value, "months", component=world.heads)
    world.set(EFFECTS, "ablation", value - 0.01, "months", component=world.keys)


def _out_of_the_worst_ten(world, count):
    """So many of the key heads do no harm: two in the digits, the others in number words."""
    for i, head in enumerate(world.keys[:count]):
        world.set(EFFECTS, "ablation", 0.0, TASKS[i // 2], component=head)


def _alone(world, value):
    """Of what others look at, member 1 gets hardly anything, so that the other limit decides."""
    world.set(LOOKS, "mean", 0.01, query="end", key="member 1")
    world.set(LOOKS, "mean", value, "months", query="end", key="member 2", component="3.3")


def _others(world, value):
    others = [h for h in world.heads if h != "4.4"]
    world.set(OV, "top5", value, "months", component=others, score="next", input="own")


def _switching(world, count):
    """So many of the four prompts of months switch at the block; the others never do."""
    file = world.path("02_logit_attribution.npz", "months")
    arrays = store.read_npz(file)
    arrays["lens_end"][:, count:] = np.eye(12)[0]
    store.write_npz(file, arrays)


def _named_edges(world, count):
    world.circuit(lambda c: c.update(edges=[*claims._EDGES[:count], "mlp0->9.1.v"]), "digits")


def _later(world, layer):
    """A head of months that transports sits in this layer; the one that writes in layer 4."""
    name = f"{layer}.0"
    for task in TASKS:
        world.circuit(lambda c, name=name: c["heads"].append([layer, 0]), task)
    world.set(ROLES, "role", "none", component="3.3")
    world.set(ROLES, "role", "transport to the end", component=name)


def _damage(column, probe, **where):
    return to(BEYOND, column, probe=probe, kind="mean", **where)


# Claim, what changes, the last value that supports it, the first that does not.
EDGES = [
    ("C1", _heads, 9, 10),
    ("C1", _kept, 0.8, 0.79),
    ("C3", to(COSTS, "change", "months", component="3.3"), -0.27, -0.269),
    ("C3", to(COSTS, "change", "months", component="2.2"), -0.249, -0.25),
    ("C4", to(COSTS, "change", "digits", component="1.2"), -0.181, -0.18),
    ("C4", to(COSTS, "change", "number_words", component="1.2"), -0.181, -0.18),
    ("C5", _drop, -0.048, -0.05),
    ("C5", _out_of_the_worst_ten, 1, 2),
    ("C6", to(EFFECTS, "ablation", "months", component="mlp3"), -0.79, -0.81),
    ("C7", to(KEPT, "mean", set="digits circuit", task="months"), 1.0, 0.999),
    ("C7", to(KEPT, "mean", set="number_words circuit", task="months"), 1.0, 0.999),
    ("C7", to(KEPT, "mean", set="months circuit", task="digits"), 0.449, 0.45),
    ("C7", to(KEPT, "mean", set="months circuit", task="number_words"), 0.449, 0.45),
    ("C8", to(KEPT, "mean", set="number_words circuit", task="digits"), 0.8, 0.799),
    ("C8", to(KEPT, "mean", set="digits circuit", task="number_words"), 0.6, 0.601),
    ("C9", to(KEPT, "mean", set="ioi circuit", task="months"), -0.001, 0.0),
    ("C10", to(ROLES, "fillers_to_fillers", "digits", component="1.1"), 0.25, 0.26),
    ("C11", to(ROLES, "members_to_members_random", "months", component="1.1"), 0.25, 0.26),
    ("C13", _alone, 0.1, 0.099),
    ("C13", to(LOOKS, "mean", "digits", query="end", key="member 4"), 0.15, 0.149),
    ("C14", to(ROLES, "end_to_newest", "digits", component="4.4"), 0.5, 0.499),
    ("C15", _others, 0.066, 0.067),  # ten times (0.9 + 35 x) / 36 against 0.9
    ("C16", to(OV, "top5", "months", words="ordinals", input="own", component="4.4"), 0.25, 0.249),
    ("C16", to(OV, "p", "months", words="ordinals", input="own"), 0.01, 0.011),
    ("C17", to(OV, "high", "digits", score="copy", component="4.4"), 0.88, 0.89),
    ("C18", _switching, 2, 1),
    ("C20", to(COSTS, "q", "months", component="5.2"), 0.049, 0.05),
    ("C20", to(COSTS, "inclusion", "digits", component="5.0"), 0.5, 0.49),
    ("C22", to(COSTS, "change", "digits", component="0.0"), -0.49, -0.51),
    ("C23", _damage("accuracy_after", "plus_3", set=CIRCUITS[1]), 0.1, 0.101),
    ("C23", _damage("random_mean", "plus_100", set=CIRCUITS[0]), 0.5, 0.499),
    ("C24", _damage("random_mean", "difference_2", set=CIRCUITS[2]), 0.25, 0.249),
    ("C24", _damage("p", "sum_2", set=CIRCUITS[0]), 0.05, 0.051),
    ("C25", _damage("retained", "month_after", set="key heads"), 0.79, 0.8),
    ("C25", _damage("p", "dates_passing", set="key heads"), 0.05, 0.051),
    ("C26", _damage("accuracy_after", "spanish_months", set=CIRCUITS[0]), 0.5, 0.501),
    ("C26", _damage("p", "spanish_number_words", set=CIRCUITS[0]), 0.05, 0.051),
    ("C27", _later, 3, 4),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return World(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize(("claim", "change", "last", "first"), EDGES)
def test_the_verdict_turns_at_the_limit(made, tmp_path, claim, change, last, first):
    for value, verdict in ((last, SUPPORTED), (first, NOT_SUPPORTED)):
        world = copy.copy(made)
        world.directory = shutil.copytree(made.directory, tmp_path / str(value))
        change(world, value)
        assert claims.judge(claim, world.evidence)[0] == verdict, value


def test_seven_of_the_named_edges_will_do(tmp_path):
    for count, verdict in ((7, SUPPORTED), (6, NOT_SUPPORTED)):
        world = World(tmp_path, GPT2, str(count), "gpt2", "source")
        _named_edges(world, count)
        assert claims.judge("C19", world.evidence)[0] == verdict
        assert claims.judge("C19", world.evidence)[1] == {"named edges": count}
