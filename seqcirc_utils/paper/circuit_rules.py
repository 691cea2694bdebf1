"""Rules of claims on circuits: what is in them, what they keep, and what they share."""

from seqcirc_utils.analyses.overlap import layer_overlap, overlap
from seqcirc_utils.errors import UserError
from seqcirc_utils.paper.evidence import TASKS, Evidence
from seqcirc_utils.paper.rules import (
    KEY,
    Finding,
    all_hold,
    best_of,
    by_task,
    key_heads,
    only_elsewhere,
    rule,
)
from seqcirc_utils.statistics import short


@rule(
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


@rule(
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


@rule(
    "C3",
    "Each of four shared heads (GPT-2: the named ones; else those with the largest smallest cost) "
    "costs every circuit at least {least:g} points when removed, and no other shared head costs "
    "any circuit {other:g}.",
    least=27,
    other=25,
)
def _c3(e: Evidence, least: float, other: float) -> Finding:
    keys = key_heads(e)
    costs = {head: by_task(e.changes, head) for head in keys}
    rest = [head for head in e.shared() if head not in keys]
    largest = [e.changes(t).reindex(rest).min() if rest else 0.0 for t in TASKS]
    parts = {
        "four shared heads": len(keys) == len(KEY),
        "the four are needed": all(all_hold(v, lambda x: x <= -least) for v in costs.values()),
        "the others less": all_hold(largest, lambda x: x > -other),
    }
    return Finding(costs | {"largest other": largest}, parts, f"other shared heads: {len(rest)}")


@rule(
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
    best = best_of(absent, lambda c: -max(digits[c], words[c]))
    figures = {"digits": digits.get(best), "number words": words.get(best)}
    note = f"head {best}" if best else "no head is in both and not in months"
    return Finding(
        figures, {"needed": all_hold(list(figures.values()), lambda x: x < -least)}, note
    )


@rule(
    "C5",
    "In the whole model a head costs less than {mean:g} points on average (gains count as 0) on "
    "every task, and of the four key heads on three tasks at least {hits} in 12 are among the ten "
    "heads that cost most.",
    mean=5,
    hits=11,
)
def _c5(e: Evidence, mean: float, hits: int) -> Finding:
    keys, means, counts = key_heads(e), [], []
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


@rule(
    "C6",
    "The two MLPs that leave least when ablated from the whole model are, in every task, the first "
    "one and one and the same of the upper half of the layers (GPT-2: MLP 9).",
)
def _c6(e: Evidence) -> Finding:
    tables = {t: e.ablation(t) for t in TASKS}
    mlps = {t: 100 + v[v.index.str.startswith("mlp")] for t, v in tables.items()}
    layers, _ = e.shape()
    upper = ["mlp9"] if e.named else [f"mlp{i}" for i in range((layers + 1) // 2, layers)]
    late = best_of(upper, lambda c: -max(mlps[t][c] for t in TASKS))
    worst = {t: set(mlps[t].nsmallest(2).index) for t in TASKS}
    said = "; ".join(f"{t}: {', '.join(sorted(w))}" for t, w in worst.items())
    return Finding(
        {"first MLP": by_task(mlps.get, "mlp0"), "late MLP": by_task(mlps.get, late)},
        {"the same two": all(w == {"mlp0", late} for w in worst.values())},
        f"late: {late}; leaving least: {said}",
    )


@rule(
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


@rule(
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


@rule("C9", "The circuit of another task, found for it, keeps less than {most:g}% of each.", most=0)
def _c9(e: Evidence, most: float) -> Finding:
    why = e.data("06_cross_task.json", "left_out").get("ioi circuit")
    if why:
        raise UserError(f"no circuit of another task was found: {why}")
    kept = [e.kept("ioi circuit", t) for t in TASKS]
    own = e.kept("ioi circuit", "ioi")
    note = f"it keeps {own:.0f}% of its own task; the published one was its heads and all MLPs"
    return Finding({"indirect-object circuit": kept}, {"below": max(kept) < most}, note)


@rule(
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
        table = e.table("04_circuit_discovery.csv", task).set_index("component")
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


@rule(
    "C21",
    "The circuits share more heads than random sets of their sizes do (p ≤ {p}), and in every task "
    "one of the shared heads has an early role (member detection or duplicate token) and one looks "
    "from the end to members (transport, next member or copy).",
    p=0.05,
)
def _c21(e: Evidence, p: float) -> Finding:
    only_elsewhere(e)
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
    return Finding(figures, parts, f"p = {short(found.p, 1)}; {', '.join(e.shared())}")


@rule("C22", "Removed from a circuit, the same head costs most in all three.")
def _c22(e: Evidence) -> Finding:
    only_elsewhere(e)
    heads = [v[~v.index.str.startswith("mlp")] for v in map(e.changes, TASKS)]
    tops = [v.idxmin() for v in heads]
    return Finding(
        {"top head": [float(v.min()) for v in heads]},
        {"one head": len(set(tops)) == 1},
        ", ".join(f"{t}: {h}" for t, h in zip(TASKS, tops, strict=True)),
    )
