"""Which claims on roles carry over: where heads look, what they write, how they follow on."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from scipy.stats import ttest_ind

from seqcirc_utils.components import Component
from seqcirc_utils.errors import UserError
from seqcirc_utils.paper.effects import CAUSAL, REPRESENTATIONAL, Effect, carries
from seqcirc_utils.paper.estimates import Estimate
from seqcirc_utils.paper.evidence import TASKS, Evidence
from seqcirc_utils.statistics import rate

COUNTED = Estimate.counted
DETECTION = ("member detection", "duplicate token")
TRANSPORT, SUCCESSOR = "transport to the end", "next member"


def _best(names: Sequence[str], effects: Callable[[str], list[Effect]]) -> list[Effect]:
    """The effects of the head whose worst one goes furthest beyond its limit.

    One head is chosen of several on the same prompts, so that the best is a little too good.
    """

    def margin(head: str) -> float:
        signs = {True: 1, False: -1}
        return min(
            signs[x.least] * (x.found.value - x.limit) / max(abs(x.limit), 1) for x in effects(head)
        )

    if not names:
        return [Effect("heads in question", COUNTED(0), 1)]
    return effects(max(names, key=margin))


def _members(e: Evidence, task: str, head: str) -> Estimate:
    """Attention from later members to earlier ones, in percent."""
    return e.looks(task, head, "later members", "earlier members", "newest member")


def _with_role(e: Evidence, role: str) -> list[str]:
    """Shared heads with one role in every task."""
    roles = [e.roles(t)["role"] for t in TASKS]
    return [h for h in e.shared() if all(some[h] == role for some in roles)]


@carries(
    "C10",
    REPRESENTATIONAL,
    "A shared head detects members in every task: it looks from member to earlier members at "
    "least {times:g} times as much as from filler to earlier fillers.",
    null="attention between fillers, which stand at like distances",
    times=2,
)
def _c10(e: Evidence, times: float) -> list[Effect]:
    def effects(head: str) -> list[Effect]:
        return [
            Effect(
                f"{head} in {t}, times",
                _members(e, t, head).over(e.looks(t, head, "filler", "earlier fillers")),
                times,
            )
            for t in TASKS
        ]

    return _best(_with_role(e, "member detection"), effects)


@carries(
    "C11",
    REPRESENTATIONAL,
    "A shared head that detects members answers to their order: in random order it looks from "
    "member to member at most {most:g}% as much.",
    null="the same head on members in order",
    most=50,
)
def _c11(e: Evidence, most: float) -> list[Effect]:
    def effects(head: str) -> list[Effect]:
        return [
            Effect(
                f"{head} in {t}, %",
                e.in_random_order(t, head).over(_members(e, t, head)).times(100),
                most,
                least=False,
            )
            for t in TASKS
        ]

    return _best(_with_role(e, "member detection"), effects)


@carries(
    "C12",
    REPRESENTATIONAL,
    "A shared head is a duplicate-token head in every task: from a repeated token it looks at "
    "earlier copies at least {times:g} times as much as evenly spread attention would.",
    null="attention spread evenly over all visible tokens",
    times=3,
)
def _c12(e: Evidence, times: float) -> list[Effect]:
    def effects(head: str) -> list[Effect]:
        return [
            Effect(
                f"{head} in {t}, times",
                e.looks(t, head, "in", "earlier copies").times(1 / e.spread(t, "in_to_copies")),
                times,
            )
            for t in TASKS
        ]

    return _best(e.shared(), effects)


@carries(
    "C13",
    REPRESENTATIONAL,
    "A shared head collects the members at the end: members 2, 3 and 4 get at least {least:g}% of "
    "its attention each, and together at least {times:g} times three times member 1's.",
    null="member 1",
    least=10,
    times=2,
)
def _c13(e: Evidence, least: float, times: float) -> list[Effect]:
    def effects(head: str) -> list[Effect]:
        found = []
        for t in TASKS:
            seen = [e.looks(t, head, "end", f"member {i}") for i in (1, 2, 3, 4)]
            found += [Effect(f"{head} to member {i + 1}, {t}", seen[i], least) for i in (1, 2, 3)]
            later = seen[1].plus(seen[2]).plus(seen[3]).times(1 / 3)
            found.append(Effect(f"{head} in {t}, times member 1", later.over(seen[0]), times))
        return found

    return _best(e.shared(), effects)


@carries(
    "C14",
    REPRESENTATIONAL,
    "A shared head looks from the end mainly at the newest member: it gets at least {least:g}% of "
    "the head's attention in every task.",
    null="half of the attention",
    least=50,
)
def _c14(e: Evidence, least: float) -> list[Effect]:
    def effects(head: str) -> list[Effect]:
        return [
            Effect(f"{head} in {t}, %", e.looks(t, head, "end", "newest member"), least)
            for t in TASKS
        ]

    return _best(e.shared(), effects)


def _top5(e: Evidence, task: str, head: str, score: str, words: str = "members") -> Estimate:
    """How often a head writes the wanted word among its top 5, on its own input, in percent."""
    row = e.ov(task, score, words=words).loc[head]
    found = Estimate(row["top5"], row["low"], row["high"], e.n_prompts(task))
    return found.times(100)


def _most_next(e: Evidence, task: str) -> str:
    """The head with the highest next score on its own input; of equals, that which copies least."""
    scores = [e.ov(task, score)["top5"] for score in ("next", "copy")]
    return max(scores[0].index, key=lambda head: (scores[0][head], -scores[1][head]))


@carries(
    "C15",
    REPRESENTATIONAL,
    "One shared head writes the next member in all three tasks: its next score on its own input is "
    "at least {times:g} times the mean of all heads.",
    null="the mean next score of all heads",
    times=3,
)
def _c15(e: Evidence, times: float) -> list[Effect]:
    means = {t: 100 * float(e.ov(t, "next")["top5"].mean()) for t in TASKS}

    def effects(head: str) -> list[Effect]:
        return [
            Effect(
                f"{head} in {t}, times",
                _top5(e, t, head, "next").times(1 / max(means[t], 1e-9)),
                times,
            )
            for t in TASKS
        ]

    return _best(e.shared(), effects)


@carries(
    "C16",
    REPRESENTATIONAL,
    "The head with the highest next score on months writes a rank rather than a token: for at "
    "least {least:g}% of months it raises the successor's ordinal into its top 5.",
    null="shuffled successors give about 5 in the number of ordinals at most",
    least=25,
)
def _c16(e: Evidence, least: float) -> list[Effect]:
    head = _most_next(e, "months")
    return [Effect(f"{head}, %", _top5(e, "months", head, "next", "ordinals"), least)]


@carries(
    "C17",
    REPRESENTATIONAL,
    "On digits the head with the highest next score writes the next member at least {least:g} "
    "points more often than the one that it looks at.",
    null="the same head's copy score",
    least=10,
)
def _c17(e: Evidence, least: float) -> list[Effect]:
    head = _most_next(e, "digits")
    following, same = (_top5(e, "digits", head, score) for score in ("next", "copy"))
    return [Effect(f"{head}, points", following.beyond(same), least)]


@carries(
    "C18",
    REPRESENTATIONAL,
    "One and the same block turns the last member into the next one: read by the logit lens, at "
    "least {least:g}% of every task's prompts switch there.",
    null="the blocks of the model share the prompts evenly",
    least=50,
)
def _c18(e: Evidence, least: float) -> list[Effect]:
    shares = [e.switches(t)[0] for t in TASKS]  # [block] each
    block = max(range(len(shares[0])), key=lambda i: min(s[i] for s in shares))
    found = []
    for task, share in zip(TASKS, shares, strict=True):
        n = e.n_prompts(task)
        switched = round(float(share[block]) * n)
        ci = rate(torch.arange(n) < switched)
        of = Estimate(ci.mean, ci.low, ci.high, n).times(100)
        found.append(Effect(f"block {block}, {task}, %", of, least))
    return found


@carries(
    "C19",
    CAUSAL,
    "In the edges of the digits circuit a head that detects feeds the one that transports and the "
    "one that writes the next member, and the one that transports steers the latter.",
    null="no such edge",
)
def _c19(e: Evidence) -> list[Effect]:
    edges = e.circuit("digits").edges
    if not edges:
        raise UserError("the circuit of digits has no edges: none were searched for.")
    role: Mapping[str, str] = e.roles("digits")["role"].to_dict()
    for wanted in (SUCCESSOR, TRANSPORT):
        if wanted not in role.values():
            raise UserError(f"no head has the role “{wanted}” on digits, so there is no such edge.")
    counts = dict.fromkeys(("detects to next (v)", "transports to next (q)"), 0)
    counts["detects to transports (v)"] = 0
    for edge in edges:
        sender, _, end = edge.partition("->")
        head, _, part = end.rpartition(".")
        writer, reader = role.get(sender), role.get(head)
        counts["detects to next (v)"] += part == "v" and writer in DETECTION and reader == SUCCESSOR
        counts["transports to next (q)"] += (part, writer, reader) == ("q", TRANSPORT, SUCCESSOR)
        counts["detects to transports (v)"] += (
            part == "v" and writer in DETECTION and reader == TRANSPORT
        )
    return [Effect(f"edges, {name}", COUNTED(n), 1) for name, n in counts.items()]


@carries(
    "C27",
    REPRESENTATIONAL,
    "The line of roles is the same: heads that detect lie at least {least:g}% of the depth before "
    "those that transport to the end, and these before those that write the next member.",
    null="no difference in depth (Welch's interval over heads)",
    least=5,
)
def _c27(e: Evidence, least: float) -> list[Effect]:
    layers, _ = e.shape()
    line = {"detection": DETECTION, "transport": (TRANSPORT,), "the successor": (SUCCESSOR,)}
    depths = {}
    for name, some in line.items():
        held = {
            (c, task)
            for task in TASKS
            for c in e.heads(task)
            if e.roles(task)["role"].get(str(c)) in some
        }
        heads: set[Component] = {c for c, _ in held}
        if len(heads) < 2:
            raise UserError(
                f"heads of the circuits in the role of {name}: {len(heads)}, and a mean depth with "
                "an interval takes two."
            )
        depths[name] = np.array([100 * c.layer / (layers - 1) for c in heads])
    names = list(depths)
    found = []
    for before, after in zip(names, names[1:], strict=False):
        late, early = depths[after], depths[before]
        ci = ttest_ind(late, early, equal_var=False).confidence_interval()
        more = float(late.mean() - early.mean())
        bounds = [more if np.isnan(b) else float(b) for b in (ci.low, ci.high)]  # no spread at all
        found.append(Effect(f"{before} before {after}, %", Estimate.of([more, *bounds], 0), least))
    return found
