"""Effects with intervals, and the verdicts that they allow."""

import math
from functools import partial

import numpy as np
import pytest
from test_claims import ALL, World

from seqcirc_utils.paper import carried_roles, claims, effects
from seqcirc_utils.paper.effects import (
    CARRIED,
    CONTRADICTED,
    SUPPORTED,
    UNDECIDED,
    Effect,
    verdict,
)
from seqcirc_utils.paper.estimates import Estimate, resampled
from seqcirc_utils.paper.evidence import NOT_TESTED, TASKS
from seqcirc_utils.paper.rules import RULES

LIMITS = {
    **{"C1": {"least": 70, "most": 25}, "C2": {"least": 1}, "C3": {"least": 10}},
    **{"C4": {"least": 10}, "C5": {"most": 5, "least": 50}, "C6": {"least": 5}},
    **{"C7": {"least": 10}, "C8": {"least": 10}, "C9": {"most": 40}, "C10": {"times": 2}},
    **{"C11": {"most": 50}, "C12": {"times": 3}, "C13": {"least": 10, "times": 2}},
    **{"C14": {"least": 50}, "C15": {"times": 3}, "C16": {"least": 25}, "C17": {"least": 10}},
    **{"C18": {"least": 50}, "C19": {}, "C20": {"again": 50, "least": 2}, "C21": {"least": 1}},
    **{"C22": {"least": 2}, "C23": {"least": 20}, "C24": {"least": 20}, "C25": {"least": 10}},
    **{"C26": {"least": 20}, "C27": {"least": 5}},
}
EFFECTS, COSTS, ROLES = "03_patching.csv", "04_circuit_discovery.csv", "05_component_roles.csv"
LOOKS, OV = "05_component_roles.attention.csv", "05_component_roles.ov.csv"
KEPT, PLANNED = "06_cross_task.csv", "07_generalisation.planned.csv"


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_the_limits_are_those_set_before_the_results():
    assert {claim: dict(c.limits) for claim, c in CARRIED.items()} == LIMITS
    assert list(LIMITS) == ALL and set(CARRIED) == set(RULES)
    assert not any(mark in c.text for c in CARRIED.values() for mark in "{}")


@pytest.mark.parametrize(
    ("bounds", "least", "side"),
    [
        ((10, 14), True, 1),  # the interval may touch its limit
        ((9.9, 14), True, 0),
        ((6, 10), True, 0),
        ((6, 9.9), True, -1),
        ((6, 10), False, 1),
        ((6, 10.1), False, 0),
        ((10.1, 14), False, -1),
    ],
)
def test_a_side_takes_the_whole_interval(bounds, least, side):
    low, high = bounds
    assert Effect("x", Estimate((low + high) / 2, low, high, 8), 10, least).side == side


def test_one_effect_short_of_its_limit_contradicts_and_one_on_both_sides_leaves_it_open():
    above, below, both = (
        Effect(name, Estimate(value, value - 1, value + 1, 8), 0)
        for name, value in (("above", 2), ("below", -2), ("both", 0.5))
    )
    assert verdict([above, above]) == SUPPORTED
    assert verdict([above, both]) == UNDECIDED
    assert verdict([above, both, below]) == CONTRADICTED


def test_how_many_prompts_would_decide():
    # Half as far from the limit as the interval reaches: four times as many prompts.
    assert Effect("x", Estimate(12, 8, 20, 10), 10).needed == 40
    assert Effect("x", Estimate(8, 7, 14, 10), 10).needed == 90  # the upper half counts here
    assert Effect("x", Estimate(10, 8, 12, 10), 10).needed == np.inf
    assert Effect("x", Estimate(12, 11, 13, 10), 10).needed == 10  # it is decided


def test_errors_of_sums_differences_and_ratios():
    a, b = Estimate(10, 7, 13, 8), Estimate(4, 0, 8, 6)
    assert a.minus(b) == Estimate(6, 1, 11, 6)  # 3 and 4 at right angles
    assert a.beyond(b) == Estimate(6, -1, 13, 6)  # one after the other
    assert a.plus(b) == Estimate(14, 7, 21, 6)  # at worst
    assert a.times(-2) == Estimate(-20, -26, -14, 8)
    ratio = Estimate(8, 4, 16).over(Estimate(2, 2, 2))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((4, 2, 8))
    half = Estimate(8, 8, 8).over(Estimate(2, 1, 4))
    assert (half.value, half.low, half.high) == pytest.approx((4, 2, 8))
    assert Estimate(8, 4, 16).over(Estimate(2, 0, 4)).high > 1e6  # no upper bound


def test_resampling_is_over_prompts():
    values = np.random.default_rng(0).normal([[1.0], [3.0]], 1, (2, 400))
    found = resampled(lambda means: means.max(0), values)
    assert found.value == pytest.approx(values.mean(1).max()) and found.n == 400
    assert found.value - found.low == pytest.approx(1.96 / 20, rel=0.2)
    assert resampled(lambda means: means.max(0), values) == found


def test_every_claim_can_carry_over(world):
    found = {claim: effects.judge(claim, world.evidence).verdict for claim in ALL}
    # It takes two heads of a role for a depth with an interval.
    assert found == dict.fromkeys(ALL, SUPPORTED) | {"C27": NOT_TESTED}


# What each effect of the made results is by hand, and half its interval where that is one number.
VALUES = {
    "C1": [82, 700 / 36, 82, 700 / 36, 82, 600 / 36],
    "C2": [4.75],  # five shared; a quarter of a head by chance
    "C3": [50] * 3 + [30] * 9,
    "C4": [20] * 2,
    "C5": [(4 * 30 + 32 * 1) / 36, 100] * 3,
    "C6": [80 - 10] * 3,
    "C7": [110 - 40, 120 - 30],
    "C8": [90 - 50],
    "C9": [-10, -20, -10],
    "C10": [0.5 / 0.01] * 3,
    "C11": [100 * 0.1 / 0.5] * 3,
    "C12": [0.8 / 0.1] * 3,
    "C13": [25, 30, 30, (25 + 30 + 30) / 3 / 5] * 3,
    "C14": [60] * 3,
    "C15": [90 / ((90 + 35) / 36)] * 3,
    "C16": [90],
    "C17": [90 - 20],
    "C18": [100] * 3,
    "C19": [2, 1, 1],
    "C20": [30] * 3,
    "C21": [5 - 7 * 7 * 6 / 36**2, 3, 3],  # by size, not by layer
    "C22": [50 - 30] * 3,
    **dict.fromkeys(("C23", "C24", "C26"), [70] * 3),
    "C25": [70],
}
HALVES = {
    **{"C3": 2, "C4": 2, "C7": 50**0.5, "C8": 50**0.5, "C9": 5, "C14": 6, "C16": 1},
    **{"C17": 2, "C20": 2, "C22": 4},
    **dict.fromkeys(("C23", "C24", "C25", "C26"), 10),
}


def test_effects_are_those_of_the_made_results(world):
    for claim, values in VALUES.items():
        found = [effect.found for effect in effects.judge(claim, world.evidence).effects]
        assert [one.value for one in found] == pytest.approx(values, abs=0.01), claim
        if half := HALVES.get(claim):
            halves = [end for one in found for end in (one.high - one.value, one.value - one.low)]
            assert halves == pytest.approx([half] * len(halves)), claim
    assert set(VALUES) == set(ALL) - {"C27"}


def test_the_best_head_is_the_one_whose_worst_effect_goes_furthest_beyond_its_limit():
    def effects_of(head):
        looks, rest = {"a": (60, 30), "b": (90, 49), "c": (55, 20), "d": (20, 1)}[head]
        return [
            Effect("looks", Estimate.counted(looks), 50),
            Effect("rest", Estimate.counted(rest), 50, least=False),
        ]

    # By the worse of the two: a 10 of 50 beyond, b 1, c 5, d short by 30.
    for names, best in (("abcd", "a"), ("bcd", "c"), ("bd", "b")):
        assert carried_roles._best(names, effects_of) == effects_of(best)
    (none,) = carried_roles._best([], effects_of)
    assert none.found.value == 0 and none.side == -1


@pytest.mark.parametrize("bounds", [(np.nan, 1, 2), (1, np.nan, 2), (1, 0, np.nan)])
def test_what_is_not_a_number_is_no_verdict(bounds, monkeypatch):
    effect = Effect("a drop", Estimate(*bounds, 10), 10)
    carried = effects.Carried("Text.", "causal", "none", partial(lambda e: [effect]))
    monkeypatch.setitem(effects.CARRIED, "C5", carried)
    judged = effects.judge("C5", None)
    assert judged.verdict == NOT_TESTED
    assert judged.reason == "what was measured of “a drop” is not a number."


def test_what_is_open_says_how_many_questions_would_decide():
    both = Effect("both", Estimate(12, 8, 20, 10), 10)  # four times as many; see above
    on_it = Effect("on the limit", Estimate(10, 8, 12, 10), 10)
    decided = Effect("decided", Estimate(2, 1, 3, 10), 10, least=False)
    reason = effects._reason(UNDECIDED, [both, decided], both.needed)
    assert reason == (
        "on both sides of the limit: both; about 40 prompts or questions would decide"
    )
    assert effects._reason(UNDECIDED, [both, on_it], math.nan).endswith("; no number would decide")
    short = Effect("short", Estimate(2, 1, 3, 10), 10)
    assert effects._reason(CONTRADICTED, [both, short], math.nan) == "short of the limit: short"
    assert [effects.about(n) for n in (7, 12, 4515)] == ["about 7", "about 12", "about 4,500"]


def alone(world, claim, changed):
    changed(world)
    return effects.judge(claim, world.evidence)


def to(name, of=None, /, **columns):
    """A change of columns; names in capitals say where."""
    where = {k[3:]: v for k, v in columns.items() if k.startswith("at_")}
    values = {k: v for k, v in columns.items() if not k.startswith("at_")}

    def change(world):
        for column, value in values.items():
            world.set(name, column, value, of, **where)

    return change


def kept(low, high, name="circuit.published.json"):
    value = {"mean": (low + high) / 2, "low": low, "high": high}
    return lambda w: w.circuit(lambda c: c.update(faithfulness=value), "months", name)


def many_heads(world):
    heads = [[i, j] for i in range(2) for j in range(6)]
    world.circuit(lambda c: c.update(heads=heads), "digits", "circuit.published.json")


def apart(name):
    def change(world):
        for i, t in enumerate(TASKS):
            moved = [[int(h[0]), (int(h[2]) + i) % 6] for h in world.circuits[t]]
            world.circuit(lambda c, moved=moved: c.update(heads=sorted(moved)), t, name)

    return change


def months_is_like_the_others(world):
    world.circuit(lambda c: c["heads"].append([1, 2]), "months")


def single(names, value):
    """What ablating some components does to every prompt of months."""

    def change(world):
        order = [*world.heads, *(f"mlp{i}" for i in range(world.cast["shape"][0]))]
        file = world.path("03_patching.npz", "months")
        arrays = world.arrays(file)
        rows = [i for i, c in enumerate(order) if names(c, world)]
        arrays["values"][rows] = value
        world.write_arrays(file, arrays)

    return change


def switching(world):
    file = world.path("02_logit_attribution.npz", "months")
    arrays = world.arrays(file)
    arrays["lens_end"][:] = np.eye(12)[0]
    world.write_arrays(file, arrays)


def roles(old, new):
    return to(ROLES, "months", role=new, at_role=old)


# Claim, a change that contradicts it, and one that leaves it undecided (none for what is counted).
CHANGES = [
    ("C1", kept(0.6, 0.69), kept(0.6, 0.8)),
    ("C1", many_heads, None),
    ("C2", apart("circuit.published.json"), None),
    (
        "C3",
        to(COSTS, "months", change=-0.05, low=-0.06, high=-0.04, at_component=["3.3", "2.2"]),
        to(COSTS, "months", change=-0.12, low=-0.2, high=-0.05, at_component="3.3"),
    ),
    ("C4", months_is_like_the_others, to(COSTS, "digits", high=-0.05, at_component="1.2")),
    ("C5", single(lambda c, w: c in w.heads, -0.3), None),
    ("C5", single(lambda c, w: c in w.keys, 0.0), None),
    ("C6", single(lambda c, w: c == "mlp1", -0.85), None),
    (
        "C7",
        to(KEPT, mean=0.3, low=0.25, high=0.35, at_set="digits circuit", at_task="months"),
        to(KEPT, low=0.1, at_set="number_words circuit", at_task="months"),
    ),
    (
        "C8",
        to(KEPT, mean=0.3, low=0.2, high=0.4, at_set="number_words circuit", at_task="digits"),
        to(KEPT, low=0.1, at_set="number_words circuit", at_task="digits"),
    ),
    (
        "C9",
        to(KEPT, mean=0.5, low=0.45, high=0.6, at_set="ioi circuit", at_task="months"),
        to(KEPT, high=0.6, at_set="ioi circuit", at_task="months"),
    ),
    ("C10", roles("member detection", "copy"), None),
    (
        "C10",
        to(LOOKS, "months", mean=0.4, low=0.3, high=0.5, at_query="filler", at_component="1.1"),
        to(LOOKS, "months", mean=0.2, low=0.1, high=0.4, at_query="filler", at_component="1.1"),
    ),
    (
        "C11",
        to(
            *(ROLES, "months"),
            members_to_members_random=0.5,
            members_to_members_random_low=0.45,
            members_to_members_random_high=0.55,
            at_component="1.1",
        ),
        to(ROLES, "months", members_to_members_random_high=0.4, at_component="1.1"),
    ),
    (
        "C12",
        to(LOOKS, "months", mean=0.2, low=0.15, high=0.25, at_query="in"),
        to(LOOKS, "months", low=0.2, at_query="in", at_component="0.0"),
    ),
    (
        "C13",
        to(LOOKS, "months", mean=0.05, low=0.04, high=0.06, at_query="end", at_key="member 2"),
        to(LOOKS, "months", low=0.05, at_query="end", at_key="member 2"),
    ),
    (
        "C13",
        to(LOOKS, "months", mean=0.4, low=0.35, high=0.45, at_query="end", at_key="member 1"),
        to(LOOKS, "months", high=0.3, at_query="end", at_key="member 1"),
    ),
    (
        "C14",
        to(LOOKS, "months", mean=0.3, low=0.2, high=0.4, at_query="end", at_key="newest member"),
        to(LOOKS, "months", low=0.4, at_query="end", at_key="newest member"),
    ),
    (
        "C15",
        to(OV, "months", top5=0.9, low=0.85, high=0.95, at_score="next", at_input="own"),
        to(OV, "months", low=0.01, at_score="next", at_input="own", at_component="4.4"),
    ),
    (
        "C16",
        to(OV, "months", top5=0.1, low=0.05, high=0.2, at_score="next", at_words="ordinals"),
        to(OV, "months", low=0.2, at_score="next", at_words="ordinals"),
    ),
    (
        "C17",
        to(OV, "digits", top5=0.9, low=0.88, high=0.92, at_score="copy", at_component="4.4"),
        to(OV, "digits", high=0.95, at_score="copy", at_component="4.4"),
    ),
    ("C18", switching, None),
    ("C19", lambda w: w.circuit(lambda c: c.update(edges=["0.0->4.4.v"])), None),
    (
        "C20",
        to(COSTS, "months", inclusion=0.4, at_component="5.2"),
        to(COSTS, "months", high=0.1, at_component="5.2"),
    ),
    (
        "C20",
        to(COSTS, "months", change=0.1, low=0.05, high=0.2, at_component="5.2"),
        to(COSTS, "months", high=0.1, at_component="5.2"),
    ),
    ("C21", apart("circuit.json"), None),
    ("C21", roles(["member detection", "duplicate token"], "none"), None),
    (
        "C22",
        to(COSTS, "months", change=-0.9, low=-0.95, high=-0.85, at_component="0.0"),
        to(COSTS, "months", low=-0.9, at_component="0.0"),
    ),
    *(
        (
            claim,
            to(PLANNED, gap=0.05, gap_low=0.0, gap_high=0.08, at_subject=subject, at_set=name),
            to(PLANNED, gap_low=0.05, at_subject=subject, at_set=name),
        )
        for claim, subject, name in (
            ("C23", "other steps", "digits circuit"),
            ("C24", "sums and differences", "months circuit"),
            ("C25", "months and dates in words", "key heads"),
            ("C26", "Spanish", "number words circuit"),
        )
    ),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_each_claim_can_be_contradicted_and_left_open(tmp_path, number):
    claim, contradicts, opens = CHANGES[number]
    for change, wanted in ((contradicts, CONTRADICTED), (opens, UNDECIDED)):
        if change is None:
            continue
        world = World(tmp_path / wanted)
        change(world)
        found = effects.judge(claim, world.evidence)
        assert found.verdict == wanted, (found.effects, found.reason)
        assert found.reason and (wanted == CONTRADICTED or "would decide" in found.reason)
        assert (found.needed > 0) == ("questions would decide" in found.reason)


def test_the_line_of_roles_is_an_interval_over_heads(world):
    """Two heads detect, transport, write; depths as far apart as their layers."""
    for t in TASKS:
        world.circuit(lambda c: c["heads"].extend([[3, 4], [4, 5]]), t)
    world.set(ROLES, "role", "transport to the end", component="3.4")
    world.set(ROLES, "role", "next member", component="4.5")
    world.set(ROLES, "role", "member detection", component="0.0")
    found = effects.judge("C27", world.evidence)
    first, second = (effect.found for effect in found.effects)
    # Layers 0 and 1, then 3 and 3, then 4 and 4, of 5: the last two have no spread.
    assert (first.value, second.value) == pytest.approx((50, 20))
    assert second.low == second.high and first.low < 0 < first.high
    assert found.verdict == UNDECIDED


def test_a_verdict_that_hangs_on_a_limit_says_so(world):
    world.set(LOOKS, "low", 0.55, query="end", key="newest member", component="4.4")
    found = effects.judge("C14", world.evidence)
    assert found.verdict == SUPPORTED and found.flips == {"least = 60": UNDECIDED}
    assert effects.judge("C8", world.evidence).flips == {}


def test_only_a_run_of_the_paper_s_model_tests_what_is_published(world, tmp_path):
    from test_claims import ABOUT_LLAMA, GPT2

    gpt2 = World(tmp_path / "other", GPT2, "any-name", "gpt2", "source")
    table = claims.claims_table(gpt2.evidence).set_index("claim")
    assert (table.loc[ABOUT_LLAMA, "as_published"] == claims.OPEN).all()
    assert (table.drop(ABOUT_LLAMA)["as_published"] == SUPPORTED).all()
    assert (claims.claims_table(world.evidence)["as_published"] == claims.OPEN).all()
