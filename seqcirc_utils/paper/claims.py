"""The paper's claims, each judged by a rule of its own on the results of the other stages.

What was published stands in ``published.json`` with its sources. A rule's limits were set before
this model's results were seen; it can come out either way, and reads tables, never a model. Where
the paper names a head of GPT-2, the rule for any other model asks for a head that all circuits
share and that does the same; a run of GPT-2 is held to the names.
What a rule needs and does not find makes the verdict ``not tested here``, with the reason.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from seqcirc_utils.analyses.overlap import layer_overlap, overlap
from seqcirc_utils.errors import UserError
from seqcirc_utils.paper.evidence import CIRCUITS, NOT_TESTED, TASKS, Evidence, published

KEY = ("0.1", "4.4", "7.11", "9.1")
"""The paper's key heads of GPT-2."""
SUPPORTED, NOT_SUPPORTED = "supported", "not supported"
VERDICTS = (SUPPORTED, NOT_SUPPORTED, NOT_TESTED)
COLUMNS = ("claim", "topic", "model", "statement", "rule", "published", "here", "reproduced")
COLUMNS += ("verdict", "reason")

Figure = float | None | Sequence[float | None]
Figures = Mapping[str, Figure]


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    Attributes:
        figures: Label to a figure, or to one per task; labels of ``published.json`` where the two
            can be compared.
        parts: The parts of the rule in words, and whether each holds.
        note: What else a reader should know, such as which head it is.
    """

    figures: Figures
    parts: dict[str, bool]
    note: str = ""

    @property
    def verdict(self) -> str:
        """``supported`` when every part holds."""
        return SUPPORTED if all(self.parts.values()) else NOT_SUPPORTED


# --- Which head stands for a head of GPT-2 ------------------------------------------------------


def _candidates(e: Evidence, name: str) -> list[str]:
    """The head that the paper names, in GPT-2; any head that all circuits share, elsewhere."""
    return [name] if e.named else e.shared()


def _key_heads(e: Evidence) -> list[str]:
    """The paper's four; elsewhere the four shared heads whose smallest cost is largest."""
    if e.named:
        return list(KEY)
    least = pd.concat([e.changes(t) for t in TASKS], axis=1).max(axis=1)
    return least.reindex(e.shared()).nsmallest(len(KEY)).index.to_list()


def _best(names: Sequence[str], score: Callable[[str], Any]) -> str | None:
    """The name with the highest score; ``None`` when there is no name."""
    return max(names, key=score, default=None)


def _three(measure: Callable[[str], pd.Series], name: str | None) -> list[float | None]:
    """A head's figure in each task; ``None`` where it was not measured."""
    found = [measure(t).get(name) for t in TASKS]
    return [None if value is None or pd.isna(value) else float(value) for value in found]


def _all(values: Sequence[float | None], holds: Callable[[float], bool]) -> bool:
    return all(value is not None and holds(value) for value in values)


# --- The rules ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """A rule in words, and the function that applies it; both have the same limits."""

    text: str
    judge: Callable[[Evidence], Finding]


RULES: dict[str, Rule] = {}


def _rule(claim: str, text: str, **limits: float) -> Callable[[Callable], Callable]:
    def register(judge: Callable) -> Callable:
        RULES[claim] = Rule(text.format(**limits), partial(judge, **limits))
        return judge

    return register


@_rule(
    "C1",
    "The published sweep keeps at most {most:.0%} of the heads for every task, and on unseen "
    "prompts the 95% interval of what the circuit keeps reaches the threshold.",
    most=0.25,
)
def _c1(e: Evidence, most: float) -> Finding:
    circuits = [e.circuit(t, published=True) for t in TASKS]
    layers, width = e.shape()
    sizes = [len(c.heads) for c in circuits]
    kept = [100 * c.faithfulness["mean"] for c in circuits]
    return Finding(
        {"heads": sizes, "kept": kept},
        {
            "small": max(sizes) <= most * layers * width,
            "kept": all(c.faithfulness["high"] >= c.threshold for c in circuits),
        },
        f"of {layers * width} heads",
    )


@_rule(
    "C2",
    "The published sweep's circuits share more heads than random circuits with as many heads in "
    "each layer do (p ≤ {p}). GPT-2: the four key heads are among them.",
    p=0.05,
)
def _c2(e: Evidence, p: float) -> Finding:
    heads = [e.heads(t, published=True) for t in TASKS]
    layers, width = e.shape()
    found, layered = overlap(heads, layers * width), layer_overlap(heads, layers, width)
    names = list(map(str, found.shared))
    parts = {"more than layer-matched chance": layered.p <= p}
    if e.named:
        parts["key heads shared"] = set(KEY) <= set(names)
    return Finding(
        {
            "shared heads": len(names),
            "expected by chance": found.expected,
            "expected in the same layers": layered.expected,
            "p in the same layers": layered.p,
        },
        parts,
        ", ".join(names),
    )


@_rule(
    "C3",
    "Each of four shared heads (GPT-2: the named ones; else those with the largest smallest cost) "
    "costs every circuit at least {least:g} points when removed, and no other shared head costs "
    "any circuit {other:g}.",
    least=27,
    other=25,
)
def _c3(e: Evidence, least: float, other: float) -> Finding:
    keys = _key_heads(e)
    costs = {head: _three(e.changes, head) for head in keys}
    rest = [head for head in e.shared() if head not in keys]
    largest = [e.changes(t).reindex(rest).min() if rest else 0.0 for t in TASKS]
    parts = {
        "four shared heads": len(keys) == len(KEY),
        "the four are needed": all(_all(v, lambda x: x <= -least) for v in costs.values()),
        "the others less": _all(largest, lambda x: x > -other),
    }
    return Finding(costs | {"largest other": largest}, parts, f"{len(rest)} other shared heads")


@_rule(
    "C4",
    "A head (GPT-2: 1.5) that costs the digits circuit and the number-words circuit more than "
    "{least:g} points each when removed is not in the months circuit.",
    least=18,
)
def _c4(e: Evidence, least: float) -> Finding:
    digits, words = e.changes("digits"), e.changes("number_words")
    absent = [c for c in digits.index.intersection(words.index) if c[0] != "m"]
    absent = [c for c in absent if c not in set(map(str, e.heads("months")))]
    if e.named:
        absent = [c for c in absent if c == "1.5"]
    best = _best(absent, lambda c: -max(digits[c], words[c]))
    figures = {"digits": digits.get(best), "number words": words.get(best)}
    note = f"head {best}" if best else "no head is in both and not in months"
    return Finding(figures, {"needed": _all(list(figures.values()), lambda x: x < -least)}, note)


@_rule(
    "C5",
    "In the whole model a head costs less than {mean:g} points on average (gains count as 0) on "
    "every task, and of the four key heads on three tasks at least {hits} in 12 are among the ten "
    "heads that cost most.",
    mean=5,
    hits=11,
)
def _c5(e: Evidence, mean: float, hits: int) -> Finding:
    keys, means, counts = _key_heads(e), [], []
    for task in TASKS:
        heads = e.ablation(task)
        heads = heads[~heads.index.str.startswith("mlp")]
        means.append(float(heads.clip(upper=0).mean()))
        counts.append(len(set(keys) & set(heads.nsmallest(10).index)))
    return Finding(
        {"mean drop": means, "key heads in the worst ten": counts},
        {"average": min(means) > -mean, "key heads": sum(counts) >= hits},
        f"key heads: {', '.join(keys)}",
    )


@_rule(
    "C6",
    "The two MLPs that leave least when ablated from the whole model are, in every task, the first "
    "one and one and the same of the upper half of the layers (GPT-2: MLP 9).",
)
def _c6(e: Evidence) -> Finding:
    tables = {t: e.ablation(t) for t in TASKS}
    mlps = {t: 100 + v[v.index.str.startswith("mlp")] for t, v in tables.items()}
    layers, _ = e.shape()
    upper = ["mlp9"] if e.named else [f"mlp{i}" for i in range((layers + 1) // 2, layers)]
    late = _best(upper, lambda c: -max(mlps[t][c] for t in TASKS))
    worst = {t: set(mlps[t].nsmallest(2).index) for t in TASKS}
    said = "; ".join(f"{t}: {', '.join(sorted(w))}" for t, w in worst.items())
    return Finding(
        {"first MLP": _three(mlps.get, "mlp0"), "late MLP": _three(mlps.get, late)},
        {"the same two": all(w == {"mlp0", late} for w in worst.values())},
        f"late: {late}; leaving least: {said}",
    )


@_rule(
    "C7",
    "Kept alone, the digits and the number-words circuit do at least {least:g}% of months, and the "
    "months circuit does less than {most:g}% of digits and of number words.",
    least=100,
    most=45,
)
def _c7(e: Evidence, least: float, most: float) -> Finding:
    rows = {a: [e.kept(f"{a} circuit", b) for b in TASKS] for a in TASKS}
    figures = {f"{a.replace('_', '-')} circuit": row for a, row in rows.items()}
    parts = {
        "months done by the others": min(rows["digits"][2], rows["number_words"][2]) >= least,
        "others not done by months": max(rows["months"][:2]) < most,
    }
    return Finding(figures, parts)


@_rule(
    "C8",
    "Kept alone, the number-words circuit does at least {least:g}% of digits, the digits circuit "
    "at most {most:g}% of number words.",
    least=80,
    most=60,
)
def _c8(e: Evidence, least: float, most: float) -> Finding:
    forth, back = e.kept("number_words circuit", "digits"), e.kept("digits circuit", "number_words")
    return Finding(
        {"number words on digits": forth, "digits on number words": back},
        {"words do digits": forth >= least, "digits do not do words": back <= most},
    )


@_rule(
    "C9", "The circuit of another task, found for it, keeps less than {most:g}% of each.", most=0
)
def _c9(e: Evidence, most: float) -> Finding:
    why = e.data("06_cross_task.json", "left_out").get("ioi circuit")
    if why:
        raise UserError(f"no circuit of another task was found: {why}")
    kept = [e.kept("ioi circuit", t) for t in TASKS]
    own = e.kept("ioi circuit", "ioi")
    note = f"it keeps {own:.0f}% of its own task; the published one was its heads and all MLPs"
    return Finding({"indirect-object circuit": kept}, {"below": max(kept) < most}, note)


@_rule(
    "C10",
    "A shared head (GPT-2: 4.4) has the role “member detection” in every task and looks from "
    "member to earlier members at least {times:g} times as much as from filler to earlier fillers.",
    times=2,
)
def _c10(e: Evidence, times: float) -> Finding:
    members = {t: e.seen(t, "members_to_members") for t in TASKS}
    fillers = {t: e.seen(t, "fillers_to_fillers") for t in TASKS}
    roles = {t: e.roles(t)["role"] for t in TASKS}

    def selective(head: str) -> float:
        return min(members[t][head] / max(fillers[t][head], 1e-6) for t in TASKS)

    detecting = [
        h for h in _candidates(e, "4.4") if all(roles[t][h] == "member detection" for t in TASKS)
    ]
    best = _best(detecting, selective)
    pairs = partial(e.attention, query="member 3", key="member 2")
    figures = {
        "member 3 to member 2": _three(pairs, best),
        "member to members": _three(members.get, best),
        "filler to fillers": _three(fillers.get, best),
    }
    parts = {
        "detects members in every task": best is not None,
        "members, not places": best is not None and selective(best) >= times,
    }
    note = f"head {best}; " if best else ""
    return Finding(figures, parts, f"{note}alternating numbers and months are not tried")


@_rule(
    "C11",
    "The head of C10 looks from member to earlier members, when their order is random, at most "
    "{most:.0%} as much as in order.",
    most=0.5,
)
def _c11(e: Evidence, most: float) -> Finding:
    column = "members_to_members_random"
    try:
        random = {t: e.seen(t, column) for t in TASKS}
    except UserError as error:
        raise UserError(f"attention is read on ordered prompts only ({error})") from None
    ordered = {t: e.seen(t, "members_to_members") for t in TASKS}
    roles = {t: e.roles(t)["role"] for t in TASKS}
    detecting = [
        h for h in _candidates(e, "4.4") if all(roles[t][h] == "member detection" for t in TASKS)
    ]

    def left(head: str) -> float:
        return max(random[t][head] / max(ordered[t][head], 1e-6) for t in TASKS)

    best = _best(detecting, lambda h: -left(h))
    figures = {"in order": _three(ordered.get, best), "random order": _three(random.get, best)}
    return Finding(
        figures, {"needs order": best is not None and left(best) <= most}, f"head {best}"
    )


@_rule(
    "C12",
    "A shared head (GPT-2: 0.1) has the role “duplicate token” in every task: it looks from a "
    "repeated token to its earlier copies. (Attention of a member to itself, as published, is no "
    "sign of it: members do not repeat.)",
)
def _c12(e: Evidence) -> Finding:
    copies = {t: e.seen(t, "in_to_copies") for t in TASKS}
    itself = {t: e.seen(t, "members_to_themselves") for t in TASKS}
    roles = {t: e.roles(t)["role"] for t in TASKS}
    names = _candidates(e, "0.1")
    count = {h: sum(roles[t].get(h) == "duplicate token" for t in TASKS) for h in names}
    best = _best(names, lambda h: (count[h], min(copies[t][h] for t in TASKS)))
    figures = {
        "member to itself": _three(itself.get, best),
        "“in” to earlier “in”": _three(copies.get, best),
    }
    parts = {"duplicate token in every task": best is not None and count[best] == len(TASKS)}
    return Finding(figures, parts, f"head {best}" if best else "no shared head")


@_rule(
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

    best = _best(_candidates(e, "7.11"), margin)
    figures = {f"member {i}": _three(seen[i].get, best) for i in seen}
    parts = {"all but the first": best is not None and margin(best) >= 1}
    return Finding(figures, parts, f"head {best}" if best else "no shared head")


@_rule(
    "C14",
    "A shared head (GPT-2: 9.1) gives the newest member, from the end, at least {least:g}% of its "
    "attention in every task.",
    least=50,
)
def _c14(e: Evidence, least: float) -> Finding:
    newest = {t: e.seen(t, "end_to_newest") for t in TASKS}
    best = _best(_candidates(e, "9.1"), lambda h: min(newest[t][h] for t in TASKS))
    values = _three(newest.get, best)
    parts = {"mainly the newest": best is not None and _all(values, lambda x: x >= least)}
    return Finding({"newest member": values}, parts, f"head {best}" if best else "no shared head")


@_rule(
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


@_rule(
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
    return Finding(figures, parts, f"head {head}, p = {own['p']:.2g}")


@_rule(
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


@_rule(
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


_EDGES = (
    *(f"{head}->9.1.v" for head in ("0.1", "1.5", "4.4", "6.6")),
    *(f"{head}->9.1.q" for head in ("5.0", "7.11", "8.1", "8.9")),
    *(f"{head}->7.11.v" for head in ("0.1", "1.5", "4.4", "4.10", "6.6")),
)


@_rule(
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
        hits = len(edges & set(_EDGES))
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
        f"{len(edges)} edges; {holders} heads of role “next member” in the model",
    )


@_rule(
    "C20",
    "Every task has a head that is in its circuit alone, needed there on unseen prompts "
    "(q < {q}) and found again in at least half of the repeated searches.",
    q=0.05,
)
def _c20(e: Evidence, q: float) -> Finding:
    n_prompts = e.circuit(TASKS[0]).n_prompts
    if 0.5**n_prompts >= q:  # the least p of a signed rank test
        raise UserError(f"with {n_prompts} prompts no q can be below {q}: raise n_prompts.")
    heads = {t: e.heads(t) for t in TASKS}
    counts, firm, names = [], [], []
    for task in TASKS:
        own = heads[task] - set.union(*(heads[t] for t in TASKS if t != task))
        columns = ("component", "q", "inclusion")
        table = e.table("04_circuit_discovery.csv", task, columns).set_index("component")
        table = table.loc[[c for c in map(str, sorted(own)) if c in table.index]]
        sure = table[(table["q"] < q) & (table["inclusion"] >= 0.5)]
        counts.append(len(own))
        firm.append(len(sure))
        names.append(f"{task}: {', '.join(sure.index) or 'none'}")
    return Finding(
        {"own heads": counts, "needed and found again": firm},
        {"each task has one": min(firm) > 0},
        "; ".join(names),
    )


@_rule(
    "C21",
    "The circuits share more heads than random sets of their sizes do (p ≤ {p}), and in every task "
    "one of the shared heads has an early role (member detection or duplicate token) and one looks "
    "from the end to members (transport, next member or copy).",
    p=0.05,
)
def _c21(e: Evidence, p: float) -> Finding:
    _elsewhere(e)
    layers, width = e.shape()
    found = overlap([e.heads(t) for t in TASKS], layers * width)
    held = [set(e.roles(t)["role"].reindex(e.shared())) for t in TASKS]
    late = {"transport to the end", "next member", "copy"}
    parts = {
        "more than chance": found.p <= p,
        "an early role": all(h & {"member detection", "duplicate token"} for h in held),
        "a late role": all(h & late for h in held),
    }
    figures = {"shared heads": len(found.shared), "expected by chance": found.expected}
    return Finding(figures, parts, f"p = {found.p:.1g}; {', '.join(e.shared())}")


@_rule("C22", "Removed from a circuit, the same head costs most in all three.")
def _c22(e: Evidence) -> Finding:
    _elsewhere(e)
    heads = [v[~v.index.str.startswith("mlp")] for v in map(e.changes, TASKS)]
    tops = [v.idxmin() for v in heads]
    return Finding(
        {"top head": [float(v.min()) for v in heads]},
        {"one head": len(set(tops)) == 1},
        ", ".join(f"{t}: {h}" for t, h in zip(TASKS, tops, strict=True)),
    )


def _elsewhere(e: Evidence) -> None:
    """Claims on Llama-2 are about other models than GPT-2."""
    if e.named:
        raise UserError("the claim is about a model other than GPT-2.")


def _damage(e: Evidence, probes: Mapping[str, str]) -> tuple[Figures, pd.DataFrame, list[str]]:
    """Accuracy without each circuit's heads and without random ones, by probe (in percent)."""
    rows = e.effects(list(probes), CIRCUITS)
    figures: dict[str, Figure] = {}
    for probe, label in probes.items():
        part = rows[rows["probe"] == probe].set_index("set")
        if len(part):
            after = 100 * part["accuracy_after"].reindex(CIRCUITS)
            figures[label] = [None if pd.isna(v) else float(v) for v in after]
            figures[f"{label}, random"] = 100 * float(part["random_mean"].mean())
    unused = [label for probe, label in probes.items() if label not in figures]
    return figures, rows, unused


@_rule(
    "C23",
    "On every number sequence (+1, +2, +3, +10, +100) that the model can do, mean-ablating the "
    "heads of any circuit leaves at most {most:g}% right, ablating as many random heads of like "
    "layers at least {least:g}%.",
    most=10,
    least=50,
)
def _c23(e: Evidence, most: float, least: float) -> Finding:
    _elsewhere(e)
    probes = {f"plus_{n}": f"+{n}" for n in (1, 2, 3, 10, 100)}
    figures, rows, unused = _damage(e, probes)
    parts = {
        "circuits destroy": bool((100 * rows["accuracy_after"] <= most).all()),
        "random heads do not": bool((100 * rows["random_mean"] >= least).all()),
    }
    return Finding(figures, parts, _unused(unused))


@_rule(
    "C24",
    "On every kind of sum or difference that the model can do, mean-ablating the heads of any "
    "circuit leaves at least {gap:g} points less right than ablating as many random heads of like "
    "layers (p ≤ {p}).",
    gap=20,
    p=0.05,
)
def _c24(e: Evidence, gap: float, p: float) -> Finding:
    _elsewhere(e)
    names = ("sum", "sums"), ("difference", "differences")
    probes = {f"{n}_{d}": f"{t}, {d} digit{'s' * (d > 1)}" for n, t in names for d in (1, 2)}
    figures, rows, unused = _damage(e, probes)
    worse = bool((100 * (rows["random_mean"] - rows["accuracy_after"]) >= gap).all())
    parts = {"worse": worse, "beyond chance": _beyond(rows, p, worse)}
    return Finding(figures, parts, _unused(unused))


def _beyond(rows: pd.DataFrame, limit: float, rest: bool) -> bool:
    """Whether every p-value is small enough.

    Raises:
        UserError: when only the number of random sets keeps them from it (and the rest holds).
    """
    large = rows[rows["p"] > limit]
    unbeaten = np.isclose(large["p"] * (large["n_draws"] + 1), 1)
    if rest and len(large) and unbeaten.all():
        draws = int(large["n_draws"].min())
        raise UserError(f"with {draws} random sets no p can be {limit} or less: raise n_draws.")
    return large.empty


_THREE = "key heads"


@_rule(
    "C25",
    "On every word problem about months or dates that the model can do, mean-ablating the few "
    "key heads together leaves fewer of the right answers than ablating as many random heads of "
    "like layers (p ≤ {p}).",
    p=0.05,
)
def _c25(e: Evidence, p: float) -> Finding:
    _elsewhere(e)
    groups = {"months": ("month_after", "months_passing"), "dates": ("date_after", "dates_passing")}
    probes = [probe for some in groups.values() for probe in some]
    rows = e.effects(probes, [_THREE])
    figures: dict[str, Figure] = {}
    for label, some in groups.items():
        part = rows[rows["probe"].isin(some)]
        if len(part):
            figures[label] = 100 * float(part["retained"].mean())
            figures[f"{label}, random"] = 100 * float(part["random_mean"].mean())
    worse = bool((rows["retained"] < rows["random_mean"]).all())
    parts = {"worse": worse, "beyond chance": _beyond(rows, p, worse)}
    asked = ", ".join(rows["probe"])
    return Finding(figures, parts, f"{rows['n_heads'].iloc[0]} heads, on {asked}")


@_rule(
    "C26",
    "On Spanish number words and months, as far as the model can do them, mean-ablating the heads "
    "of any circuit leaves at most {most:g}% right, and fewer than random heads (p ≤ {p}).",
    most=50,
    p=0.05,
)
def _c26(e: Evidence, most: float, p: float) -> Finding:
    _elsewhere(e)
    probes = {"spanish_number_words": "Spanish number words", "spanish_months": "Spanish months"}
    figures, rows, unused = _damage(e, probes)
    broken = bool((100 * rows["accuracy_after"] <= most).all())
    parts = {"broken": broken, "beyond chance": _beyond(rows, p, broken)}
    return Finding(figures, parts, _unused(unused))


def _unused(labels: Sequence[str]) -> str:
    return f"not measured: {', '.join(labels)}" if labels else ""


@_rule(
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


# --- The tables ---------------------------------------------------------------------------------


def judge(claim: str, evidence: Evidence) -> tuple[str, Figures, str]:
    """Apply one claim's rule: verdict, figures, and the reason."""
    try:
        found = RULES[claim].judge(evidence)
    except UserError as error:
        return NOT_TESTED, {}, str(error)
    failed = [part for part, holds in found.parts.items() if not holds]
    said = [f"does not hold: {', '.join(failed)}"] if failed else []
    return found.verdict, found.figures, "; ".join([*said, *([found.note] if found.note else [])])


def claims_table(evidence: Evidence, gpt2: Evidence | None = None) -> pd.DataFrame:
    """All claims, judged.

    Args:
        evidence: Results of the model in question.
        gpt2: Results of GPT-2, when there are any: they fill ``reproduced``.

    Returns:
        A row per claim, in order: ``claim``, ``topic``, ``model`` (that it was published of),
        ``statement``, ``rule``, ``published`` figures, those found ``here``, those of GPT-2
        ``reproduced`` with their difference to the published ones, ``verdict`` and its ``reason``.
    """
    rows = []
    for claim in published()["claims"]:
        verdict, figures, reason = judge(claim["id"], evidence)
        again = judge(claim["id"], gpt2)[1] if gpt2 else {}
        again = {k: v for k, v in again.items() if k in claim["figures"]}
        rows.append(
            {
                "claim": claim["id"],
                **{key: claim[key] for key in ("topic", "model", "statement")},
                "rule": RULES[claim["id"]].text,
                "published": in_words(claim["figures"]),
                "here": in_words(figures),
                "reproduced": in_words(again, claim["figures"]),
                "verdict": verdict,
                "reason": reason,
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def in_words(figures: Figures, against: Figures | None = None) -> str:
    """Figures as text, ``label: 1.0 / 2.0 / 3.0; …``, with differences to others in brackets."""
    said = []
    for label, value in figures.items():
        values = list(value) if isinstance(value, Sequence) else [value]
        other = against[label] if against else None
        others = list(other) if isinstance(other, Sequence) else [other] * len(values)
        both = [_number(v, o) for v, o in zip(values, others, strict=True)]
        said.append(f"{label}: {' / '.join(both)}")
    return "; ".join(said)


def _number(value: float | None, other: float | None = None) -> str:
    if value is None:
        return "–"
    whole = float(value).is_integer()
    text = f"{value:.0f}" if whole else f"{value:.2g}" if abs(value) < 0.1 else f"{value:.1f}"
    return text if other is None else f"{text} ({value - other:+.1f})"
