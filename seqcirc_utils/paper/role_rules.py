"""Rules of claims on what heads look at, what they write, and which part they play in a circuit."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from seqcirc_utils.errors import UserError
from seqcirc_utils.paper.evidence import TASKS, Evidence
from seqcirc_utils.paper.rules import Finding, all_hold, best_of, by_task, candidates, rule
from seqcirc_utils.statistics import short


def _detecting(e: Evidence) -> list[str]:
    """The heads in question that detect members in every task."""
    roles = [e.roles(t)["role"] for t in TASKS]
    names = candidates(e, "4.4")
    return [h for h in names if all(role[h] == "member detection" for role in roles)]


@rule(
    "C10",
    "A shared head (GPT-2: 4.4) has the role “member detection” in every task and looks from "
    "member to earlier members at least {times:g} times as much as from filler to earlier fillers.",
    times=2,
)
def _c10(e: Evidence, times: float) -> Finding:
    members = {t: e.seen(t, "members_to_members") for t in TASKS}
    fillers = {t: e.seen(t, "fillers_to_fillers") for t in TASKS}

    def selective(head: str) -> float:
        return min(members[t][head] / max(fillers[t][head], 1e-6) for t in TASKS)

    best = best_of(_detecting(e), selective)
    pairs = partial(e.attention, query="member 3", key="member 2")
    figures = {
        "member 3 to member 2": by_task(pairs, best),
        "member to members": by_task(members.get, best),
        "filler to fillers": by_task(fillers.get, best),
    }
    parts = {
        "detects members in every task": best is not None,
        "members, not places": best is not None and selective(best) >= times,
    }
    note = f"head {best}; " if best else ""
    return Finding(figures, parts, f"{note}alternating numbers and months are not tried")


@rule(
    "C11",
    "A head that detects members in every task looks from member to earlier members, when their "
    "order is random, at most {most:.0%} as much as in order.",
    most=0.5,
)
def _c11(e: Evidence, most: float) -> Finding:
    column = "members_to_members_random"
    try:
        random = {t: e.seen(t, column) for t in TASKS}
    except UserError as error:
        raise UserError(f"attention is read on ordered prompts only ({error})") from None
    ordered = {t: e.seen(t, "members_to_members") for t in TASKS}

    def left(head: str) -> float:
        return max(random[t][head] / max(ordered[t][head], 1e-6) for t in TASKS)

    best = best_of(_detecting(e), lambda h: -left(h))
    figures = {
        "in order": by_task(ordered.get, best),
        "random order": by_task(random.get, best),
    }
    return Finding(
        figures, {"needs order": best is not None and left(best) <= most}, f"head {best}"
    )


@rule(
    "C12",
    "A shared head (GPT-2: 0.1) has the role “duplicate token” in every task: it looks from a "
    "repeated token to its earlier copies. (Attention of a member to itself, as published, is no "
    "sign of it: members do not repeat.)",
)
def _c12(e: Evidence) -> Finding:
    copies = {t: e.seen(t, "in_to_copies") for t in TASKS}
    itself = {t: e.seen(t, "members_to_themselves") for t in TASKS}
    roles = {t: e.roles(t)["role"] for t in TASKS}
    names = candidates(e, "0.1")
    count = {h: sum(roles[t].get(h) == "duplicate token" for t in TASKS) for h in names}
    best = best_of(names, lambda h: (count[h], min(copies[t][h] for t in TASKS)))
    figures = {
        "member to itself": by_task(itself.get, best),
        "“in” to earlier “in”": by_task(copies.get, best),
    }
    parts = {"duplicate token in every task": best is not None and count[best] == len(TASKS)}
    return Finding(figures, parts, f"head {best}" if best else "no shared head")


@rule(
    "C13",
    "A shared head (GPT-2: 7.11) gives, from the end, members 2, 3 and 4 at least {least:g}% of "
    "its attention each, and each at least {times:g} times what member 1 gets, in every task.",
    least=10,
    times=3,
)
def _c13(e: Evidence, least: float, times: float) -> Finding:
    seen = {i: {t: e.attention(t, "end", f"member {i}") for t in TASKS} for i in range(1, 5)}

    def margin(head: str) -> float:
        least_of = {t: min(seen[i][t].get(head, 0) for i in (2, 3, 4)) for t in TASKS}
        first = {t: times * max(seen[1][t].get(head, 0), 1e-6) for t in TASKS}
        return min(min(least_of[t] / least, least_of[t] / first[t]) for t in TASKS)

    best = best_of(candidates(e, "7.11"), margin)
    figures = {f"member {i}": by_task(seen[i].get, best) for i in seen}
    parts = {"all but the first": best is not None and margin(best) >= 1}
    return Finding(figures, parts, f"head {best}" if best else "no shared head")


@rule(
    "C14",
    "A shared head (GPT-2: 9.1) gives the newest member, from the end, at least {least:g}% of its "
    "attention in every task.",
    least=50,
)
def _c14(e: Evidence, least: float) -> Finding:
    newest = {t: e.seen(t, "end_to_newest") for t in TASKS}
    best = best_of(candidates(e, "9.1"), lambda h: min(newest[t][h] for t in TASKS))
    values = by_task(newest.get, best)
    parts = {"mainly the newest": best is not None and all_hold(values, lambda x: x >= least)}
    return Finding({"newest member": values}, parts, f"head {best}" if best else "no shared head")


@rule(
    "C15",
    "On the heads' own inputs one and the same head (GPT-2: 9.1) has the highest next score of all "
    "in every task, at least {times:g} times their mean, and is in every circuit.",
    times=10,
)
def _c15(e: Evidence, times: float) -> Finding:
    own = {t: 100 * e.ov(t, "next")["top5"] for t in TASKS}
    words = {t: "ordinals" if t == "months" else "members" for t in TASKS}
    bare = {t: 100 * e.ov(t, "next", "bare sequence", words[t])["top5"] for t in TASKS}
    tops = {t: set(own[t].index[own[t] == own[t].max()]) for t in TASKS}  # there may be ties
    everywhere = set.intersection(*tops.values()) & (
        {"9.1"} if e.named else set(own["digits"].index)
    )
    figures = {
        "best, own input": [float(own[t].max()) for t in TASKS],
        "mean, own input": [float(own[t].mean()) for t in TASKS],
        "best, the paper's way": [
            float(bare[t]["9.1"] if e.named else bare[t].max()) for t in TASKS
        ],
        "mean, the paper's way": [float(bare[t].mean()) for t in TASKS],
    }
    parts = {
        "one head": bool(everywhere),
        "far above the mean": all(own[t].max() > times * own[t].mean() for t in TASKS),
        "in every circuit": bool(everywhere & set(e.shared())),
    }
    said = [f"{t}: {', '.join(sorted(heads)[:3])}" for t, heads in tops.items()]
    return Finding(figures, parts, "; ".join(said))


@rule(
    "C16",
    "The head with the highest next score on months (GPT-2: 9.1) has, for months scored against "
    "ordinals and on its own input, the successor's ordinal among its top 5 for at least "
    "{least:g}% of members, and more than for shuffled successors (p ≤ {p}).",
    least=25,
    p=0.01,
)
def _c16(e: Evidence, least: float, p: float) -> Finding:
    head = "9.1" if e.named else e.ov("months", "next")["top5"].idxmax()
    own = e.ov("months", "next", words="ordinals").loc[head]
    bare = e.ov("months", "next", "bare sequence", "ordinals")["top5"][head]
    figures = {
        "ordinals for months, own input": 100 * float(own["top5"]),
        "ordinals for months, the paper's way": 100 * float(bare),
    }
    parts = {"often enough": 100 * own["top5"] >= least, "beyond chance": own["p"] <= p}
    return Finding(figures, parts, f"head {head}, p = {short(own['p'])}")


@rule(
    "C17",
    "For the head with the highest next score on digits (GPT-2: 9.1; of equals the one that copies "
    "least), on its own input, the next score lies above the copy score and their 95% intervals do "
    "not overlap.",
)
def _c17(e: Evidence) -> Finding:
    scores = [e.ov("digits", score) for score in ("next", "copy")]
    both = pd.DataFrame({"next": scores[0]["top5"], "copy": -scores[1]["top5"]})
    head = "9.1" if e.named else both.sort_values(["next", "copy"]).index[-1]
    next_, copy = (table.loc[head] for table in scores)
    bare = [e.ov("digits", score, "bare sequence")["top5"][head] for score in ("next", "copy")]
    figures = {
        "next, own input": 100 * float(next_["top5"]),
        "copy, own input": 100 * float(copy["top5"]),
        "next, the paper's way": 100 * float(bare[0]),
        "copy, the paper's way": 100 * float(bare[1]),
    }
    return Finding(figures, {"more next": next_["low"] > copy["high"]}, f"head {head}")


@rule(
    "C18",
    "Among the task's members, the last one is on top of the lens before one and the same block "
    "(GPT-2: block 9) and the next one after it, in at least {least:g}% of the prompts of every "
    "task.",
    least=50,
)
def _c18(e: Evidence, least: float) -> Finding:
    exact, loose = zip(*(e.switches(t) for t in TASKS), strict=True)
    blocks = [9 if e.named else _block(shares) for shares in (exact, loose)]
    strict = [100 * float(share[blocks[0]]) for share in exact]
    figures = {
        "switching, last to next": strict,
        "switching, the paper's rule": [100 * float(share[blocks[1]]) for share in loose],
    }
    note = "best blocks: {} by this rule, {} by the paper's".format(*blocks)
    return Finding(figures, {"one block": min(strict) >= least}, note)


def _block(shares: Sequence[np.ndarray]) -> int:
    """The block with the largest least share; of equals the one with the largest mean."""
    return max(
        range(len(shares[0])), key=lambda i: (min(s[i] for s in shares), sum(s[i] for s in shares))
    )


NAMED_EDGES = (
    *(f"{head}->9.1.v" for head in ("0.1", "1.5", "4.4", "6.6")),
    *(f"{head}->9.1.q" for head in ("5.0", "7.11", "8.1", "8.9")),
    *(f"{head}->7.11.v" for head in ("0.1", "1.5", "4.4", "4.10", "6.6")),
)
"""The edges that the paper names in GPT-2's digits circuit."""


@rule(
    "C19",
    "In the digits circuit's edges a head of role “next member” reads its values from one of role "
    "“member detection” or “duplicate token” and its queries from one of role “transport to the "
    "end”, and that one its values from one of the first two. GPT-2: at least {least} of the 13 "
    "named edges are there.",
    least=7,
)
def _c19(e: Evidence, least: int) -> Finding:
    edges = set(e.circuit("digits").edges)
    if not edges:
        raise UserError("the circuit of digits has no edges: none were searched for.")
    if e.named:
        hits = len(edges & set(NAMED_EDGES))
        return Finding({"named edges": hits}, {"most of them": hits >= least})
    role = e.roles("digits")["role"]
    early = ("member detection", "duplicate token")

    def readers(reader: str, source: str, writers: Sequence[str]) -> set[str]:
        found = set()
        for edge in edges:
            sender, _, end = edge.partition("->")
            head, _, part = end.rpartition(".")
            if part == source and role.get(head) == reader and role.get(sender) in writers:
                found.add(edge)
        return found

    found = {
        "values of a successor head": readers("next member", "v", early),
        "queries of a successor head": readers("next member", "q", ("transport to the end",)),
        "values of a transport head": readers("transport to the end", "v", early),
    }
    holders = (role == "next member").sum()
    return Finding(
        {name: len(some) for name, some in found.items()},
        {name: bool(some) for name, some in found.items()},
        f"edges: {len(edges)}; heads of role “next member” in the model: {holders}",
    )


@rule(
    "C27",
    "In every circuit some head detects (member detection or duplicate token), some transports to "
    "the end and some writes the next member, at mean depths in this order.",
)
def _c27(e: Evidence) -> Finding:
    stages = {
        "depth of detection": ("member detection", "duplicate token"),
        "depth of transport": ("transport to the end",),
        "depth of the successor": ("next member",),
    }
    layers, _ = e.shape()
    depths: dict[str, list[float | None]] = {name: [] for name in stages}
    for task in TASKS:
        roles = e.roles(task)["role"]
        for name, some in stages.items():
            held = [c.layer for c in e.heads(task) if roles.get(str(c)) in some]
            depths[name].append(100 * float(np.mean(held)) / (layers - 1) if held else None)
    filled = all(v is not None for values in depths.values() for v in values)
    columns = list(zip(*depths.values(), strict=True))
    parts = {"each role is held": filled, "in this order": filled and all(map(_rising, columns))}
    return Finding(dict(depths), parts)


def _rising(values: Sequence[float]) -> bool:
    return all(a < b for a, b in zip(values, values[1:], strict=False))
