"""The claims' limits: published before the results, and held to the digit on both sides."""

import copy
import shutil

import numpy as np
import pytest
from test_claims import GPT2, World

from seqcirc_utils import store
from seqcirc_utils.paper import claims, role_rules
from seqcirc_utils.paper.evidence import CIRCUITS, TASKS
from seqcirc_utils.paper.rules import NOT_SUPPORTED, SUPPORTED

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
    edges = [*role_rules.NAMED_EDGES[:count], "mlp0->9.1.v"]
    world.circuit(lambda c: c.update(edges=edges), "digits")


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


FIGURES = {
    "C1": {"heads": [7, 7, 6], "kept": [82] * 3},
    # By layer 1, 4 (two of digits and of number words, one of months), 1, 1, 1 and 1 over 6 × 6.
    "C2": {
        "shared heads": 5,
        "expected by chance": 7 * 7 * 6 / 36**2,
        "expected in the same": 0.25,
    },
    "C3": {"4.4": [-50] * 3, "0.0": [-30] * 3, "largest other": [-10] * 3},
    "C4": {"digits": -20, "number words": -20},
    "C5": {"mean drop": [-(4 * 30 + 32 * 1) / 36] * 3, "key heads in the worst ten": [4] * 3},
    "C6": {"first MLP": [10] * 3, "late MLP": [20] * 3},
    "C7": {
        "digits circuit": [80, 50, 110],
        "number-words circuit": [90, 80, 120],
        "months circuit": [40, 30, 80],
    },
    "C8": {"number words on digits": 90, "digits on number words": 50},
    "C9": {"indirect-object circuit": [-10, -20, -10]},
    "C10": {"member 3 to member 2": [1] * 3, "member to members": [50] * 3, "filler to": [2] * 3},
    "C11": {"in order": [50] * 3, "random order": [10] * 3},
    "C12": {"member to itself": [90] * 3, "“in” to earlier “in”": [80] * 3},
    "C13": {f"member {i + 1}": [v] * 3 for i, v in enumerate((5, 25, 30, 30))},
    "C14": {"newest member": [60] * 3},
    "C15": {"best, own input": [90] * 3, "mean, own input": [(90 + 35) / 36] * 3},
    "C16": {"ordinals for months, own": 90, "ordinals for months, the paper's way": 90},
    "C17": {"next, own": 90, "copy, own": 20, "next, the paper": 90, "copy, the paper": 20},
    "C18": {"switching, last to next": [100] * 3, "switching, the paper's rule": [100] * 3},
    "C19": {"values of a succ": 2, "queries of a succ": 1, "values of a transport": 1},
    "C20": {"own heads": [1] * 3, "needed and found again": [1] * 3},
    "C21": {"shared heads": 5, "expected by chance": 7 * 7 * 6 / 36**2},
    "C22": {"top head": [-50] * 3},
    "C23": {"+1": [5] * 3, "+100": [5] * 3, "+100, random": 80},
    "C24": {"sums, 1 digit": [5] * 3, "differences, 2 digits, random": 80},
    "C25": {"months": 5, "months, random": 80, "dates": 5, "dates, random": 80},
    "C26": {"Spanish months": [5] * 3, "Spanish number words, random": 80},
    # Layers 0 and 1, 3, and 4 of 0 to 5.
    "C27": {"depth of detection": [10] * 3, "depth of trans": [60] * 3, "depth of the": [80] * 3},
}


@pytest.mark.parametrize("claim", FIGURES)
def test_figures_are_those_of_the_made_results(made, claim):
    found = claims.judge(claim, made.evidence)[1]
    for label, value in FIGURES[claim].items():
        (name,) = [n for n in found if n == label] or [n for n in found if n.startswith(label)]
        assert found[name] == pytest.approx(value), name


NOTES = {
    "C1": "of 36 heads",
    "C2": "0.0, 1.1, 2.2, 3.3, 4.4",
    "C3": "other shared heads: 1",
    "C4": "head 1.2",
    "C5": "key heads: 4.4, 0.0, 1.1, 3.3",
    "C6": "late: mlp4; leaving least: "
    "digits: mlp0, mlp4; number_words: mlp0, mlp4; months: mlp0, mlp4",
    "C9": "it keeps 80% of its own task; the published one was its heads and all MLPs",
    "C10": "head 1.1; alternating numbers and months are not tried",
    **{"C11": "head 1.1", "C12": "head 0.0", "C13": "head 3.3", "C14": "head 4.4"},
    "C15": "digits: 4.4; number_words: 4.4; months: 4.4",
    **{"C16": "head 4.4, p = 0.001", "C17": "head 4.4"},
    "C18": "best blocks: 4 by this rule, 4 by the paper's",
    "C19": "edges: 5; heads of role “next member” in the model: 1",
    "C20": "digits: 5.0; number_words: 5.1; months: 5.2",
    # By the hypergeometric law: at least five of the heads in sets of 7, 7 and 6 of 36.
    "C21": "p = 2 × 10⁻⁸; 0.0, 1.1, 2.2, 3.3, 4.4",
    "C22": "digits: 4.4, number_words: 4.4, months: 4.4",
    "C25": "7 heads, on month_after, months_passing, date_after, dates_passing",
}


@pytest.mark.parametrize("claim", NOTES)
def test_notes_are_those_of_the_made_results(made, claim):
    assert claims.judge(claim, made.evidence)[2] == NOTES[claim]


def _months_differ(world):
    world.set(EFFECTS, "ablation", -0.04, "months", component="2.2")  # 4 points instead of 1
    world.set(COSTS, "change", -0.24, "months", component="2.2")
    world.set(ROLES, "end_to_newest", 0.7, "months", component="4.4")
    world.set(OV, "top5", 0.8, "months", component="4.4", score="next", input="own")
    world.set(BEYOND, "accuracy_after", 0.01, probe="plus_1", set=CIRCUITS[2])
    world.set(BEYOND, "random_mean", 0.5, probe="plus_1", set=CIRCUITS[2], kind="mean")
    world.set(BEYOND, "retained", 0.25, probe="month_after", set="key heads", kind="mean")


def test_three_figures_are_those_of_the_tasks_in_order(made, tmp_path):
    world = copy.copy(made)
    world.directory = shutil.copytree(made.directory, tmp_path / "differ")
    _months_differ(world)
    found = {
        c: claims.judge(c, world.evidence)[1] for c in ("C3", "C5", "C14", "C15", "C23", "C25")
    }
    assert found["C3"]["largest other"] == pytest.approx([-10, -10, -24])
    assert found["C5"]["mean drop"] == pytest.approx([-152 / 36, -152 / 36, -155 / 36])
    assert found["C14"]["newest member"] == pytest.approx([60, 60, 70])
    assert found["C15"]["mean, own input"] == pytest.approx([125 / 36, 125 / 36, 115 / 36])
    assert found["C23"]["+1"] == pytest.approx([5, 5, 1])
    assert found["C23"]["+1, random"] == pytest.approx((80 + 80 + 50) / 3)
    assert found["C25"]["months"] == pytest.approx((25 + 5) / 2)


# Another head is better on one task and worse on the worst: the rule keeps to the one it had.
RIVALS = [
    (
        "C3",
        "other shared heads: 1",
        [(COSTS, "change", "digits", -0.249), (COSTS, "change", "months", -0.01)],
    ),
    ("C10", "head 1.1", [(ROLES, "role", None, "member detection")]),
    (
        "C10",
        "head 2.2",
        [(ROLES, "role", None, "member detection"), (ROLES, "members_to_members", None, 0.6)],
    ),
    (
        "C10",
        "head 1.1",
        [
            (ROLES, "role", None, "member detection"),
            (ROLES, "members_to_members", "digits", 0.9),
            (ROLES, "members_to_members", "months", 0.4),
        ],
    ),
    (
        "C11",
        "head 1.1",
        [
            (ROLES, "role", None, "member detection"),
            (ROLES, "members_to_members", None, 0.5),
            (ROLES, "members_to_members_random", "months", 0.2),
        ],
    ),
    ("C12", "head 0.0", [(ROLES, "in_to_copies", None, 0.95)]),
    (
        "C12",
        "head 2.2",
        [(ROLES, "role", None, "duplicate token"), (ROLES, "in_to_copies", None, 0.9)],
    ),
    (
        "C12",
        "head 0.0",
        [
            (ROLES, "role", None, "duplicate token"),
            (ROLES, "in_to_copies", "digits", 0.95),
            (ROLES, "in_to_copies", "months", 0.7),
        ],
    ),
    (
        "C14",
        "head 4.4",
        [(ROLES, "end_to_newest", "digits", 0.99), (ROLES, "end_to_newest", "months", 0.55)],
    ),
    ("C14", "head 2.2", [(ROLES, "end_to_newest", None, 0.61)]),
]


@pytest.mark.parametrize(("claim", "note", "changes"), RIVALS)
def test_the_head_is_that_which_is_best_where_it_is_worst(made, tmp_path, claim, note, changes):
    world = copy.copy(made)
    world.directory = shutil.copytree(made.directory, tmp_path / "rival")
    for name, column, task, value in changes:
        world.set(name, column, value, task, component="2.2")
    verdict, _, reason = claims.judge(claim, world.evidence)
    assert verdict == SUPPORTED and reason.startswith(note)


def test_the_four_key_heads_are_those_whose_smallest_cost_is_largest(made, tmp_path):
    world = copy.copy(made)
    world.directory = shutil.copytree(made.directory, tmp_path / "keys")
    world.set(COSTS, "change", -0.9, "digits", component="2.2")  # most, but not in the others
    verdict, figures, reason = claims.judge("C3", world.evidence)
    assert (
        verdict == NOT_SUPPORTED
        and reason == "does not hold: the others less; other shared heads: 1"
    )
    assert list(figures) == ["4.4", "0.0", "1.1", "3.3", "largest other"]
    assert figures["largest other"] == pytest.approx([-90, -10, -10])
