"""Whether shared parts carry the same thing: how far a sequence has come, in each task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from seqcirc_utils.ablation.replay import Run, record
from seqcirc_utils.analyses.interchange import KINDS, Ends, Outcome, Swap, pairs, subspace
from seqcirc_utils.chapters.circuit_discovery import CircuitDiscovery
from seqcirc_utils.chapters.findings import Findings, table
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.circuits.chance import matched
from seqcirc_utils.components import Component
from seqcirc_utils.errors import CannotDo, section
from seqcirc_utils.prompts.prompts import Prompts
from seqcirc_utils.prompts.sequences import TASKS
from seqcirc_utils.statistics import corrected, over_both, percentile_p

_SHARES = dict.fromkeys(
    ("wanted", "wanted_low", "wanted_high", "own", "token", "other")
    + ("shift", "shift_low", "shift_high"),
    float,
)


@dataclass(frozen=True, kw_only=True)
class Interchange(Findings):
    """What the model answers when a part holds what it held in another prompt.

    Shares of prompts that the model answers with the ``wanted`` member (the base task's after the
    source's place), with the prompt's ``own``, with the ``token`` that answers the source prompt,
    and with any ``other`` token of its vocabulary; ``shift`` is how far the wanted answer gained on
    the prompt's own, in nats. Bounds are 95% intervals over prompts (of random heads: over sets and
    prompts).

    Attributes:
        layers: A row per source task, base task, layer and kind of swap of the whole stream before
            a block; ``half`` says whether the layer was chosen on these prompts (``choosing``) or
            judged on them (``judging``).
        heads: A row per source task, base task and set of heads, for the deviation and raw.
        tests: A row per pair of different tasks: does swapping the shared heads shift more than
            swapping random heads of like layers (rank among ``draws`` sets, ``q`` corrected)?
        subspace: What swapping a few directions does, found on the pair of tasks ``fitted``.
        best: The layer where a deviation of another task most often gives the wanted answer, on
            the prompts for choosing.
        shared: Heads in all circuits.
        title: The model's title.
        n_layers: How many blocks it has.
        n: Pairs of prompts for each pair of tasks.
        rank: Directions of the subspace.
        left_out: Tasks that are not compared, and why.
        missing: Sections that do not apply, and why.
    """

    stage = "11_interchange"

    layers: pd.DataFrame = table(
        "layers.csv",
        {"source": str, "base": str, "half": str, "layer": int, "kind": str, "n": int} | _SHARES,
    )
    heads: pd.DataFrame = table(
        "heads.csv",
        {"source": str, "base": str, "set": str, "n_heads": int, "kind": str, "n": int} | _SHARES,
    )
    tests: pd.DataFrame = table(
        "tests.csv",
        {"source": str, "base": str, "draws": int}
        | dict.fromkeys(("shift", "random", "p", "q"), float),
    )
    subspace: pd.DataFrame = table(
        "subspace.csv",
        {"fitted": str, "source": str, "base": str, "directions": str, "n": int} | _SHARES,
    )
    best: int | None
    shared: list[str]
    title: str
    n_layers: int
    n: int
    rank: int
    left_out: dict[str, str]
    missing: dict[str, str]

    @classmethod
    def measure(cls, at: Setting) -> Self:
        """Swap streams, heads and directions between all pairs of tasks; see the class."""
        lm, missing = at.model, {}
        circuits, left_out = _circuits(at)
        means = {
            task: Ends.of(record(lm, at.sets(task).discovery)).mean()  # these are in no pair
            for task in circuits
        }
        runs = {task: record(lm, _bases(at, task)) for task in circuits}
        swaps = {
            (source, base): _swap(at, means, source, base, runs[base])
            for source, base in product(circuits, repeat=2)
        }
        layers = _layers(at, swaps)
        best = _best(layers[layers["layer"] < lm.n_layers])  # what is before a block
        shared = sorted(set.intersection(*circuits.values()))
        heads, tests = cls.empty("heads"), cls.empty("tests")
        if shared:
            heads, tests = _heads(at, swaps, circuits, shared)
        else:
            missing["heads"] = "no head is in all circuits."
        directions = cls.empty("subspace")
        if not at["das_epochs"]:
            missing["subspace"] = "das_epochs is 0: no directions were looked for."
        elif best is None:
            missing["subspace"] = "no swap before a block of another task gives a wanted answer."
        else:
            with section(missing, "subspace"):
                directions = _subspace(at, swaps, best)
        return cls(
            layers=layers,
            heads=heads,
            tests=tests,
            subspace=directions,
            best=best,
            shared=list(map(str, shared)),
            title=lm.facts.title,
            n_layers=lm.n_layers,
            n=min(at["n_swapped"], at["n_prompts"]),
            rank=at["das_rank"],
            left_out=left_out,
            missing=missing,
        )


def _circuits(at: Setting) -> tuple[dict[str, set[Component]], dict[str, str]]:
    """The heads of each task's circuit, and the tasks without one.

    Raises:
        CannotDo: with fewer than two tasks.
    """
    found, left_out = {}, {}
    for task in at["tasks"]:
        try:
            circuit = at.read(CircuitDiscovery, task).circuit
            found[task] = {c for c in circuit.components if c.head is not None}
        except CannotDo as reason:
            left_out[TASKS[task].title] = str(reason)
    if len(found) < 2:
        raise CannotDo("Fewer than two tasks have a circuit: nothing can be swapped between them.")
    return found, left_out


def _bases(at: Setting, task: str) -> Prompts:
    """The prompts of a task that something is put into."""
    return at.sets(task).evaluation[range(min(at["n_swapped"], at["n_prompts"]))]


def _swap(at: Setting, means: Mapping[str, Ends], source: str, base: str, run: Run) -> Swap:
    """The pairs of two tasks; the base prompts were run before."""
    chosen = pairs(at.model, _bases(at, base), at.sets(source).evaluation, at["seed"])
    return Swap(at.model, chosen, means[base], means[source], seed=at["seed"], run=run)


def _halves(outcome: Outcome, starts: Sequence[int]) -> dict[str, Outcome]:
    """Where the layer is chosen, and where it is judged: every start has prompts in both."""
    rows = torch.tensor(starts).argsort(stable=True)
    return {
        name: Outcome(
            *({k: v[rows[i::2]] for k, v in p.items()} for p in (outcome.says, outcome.log_prob))
        )
        for i, name in enumerate(("choosing", "judging"))
    }


def _layers(at: Setting, swaps: Mapping[tuple[str, str], Swap]) -> pd.DataFrame:
    """Swaps of the whole stream."""
    last = at.model.n_layers
    places = sorted({*range(0, last, at["layer_step"]), last})
    rows = []
    for (source, base), swap in tqdm(swaps.items(), desc="Streams", unit="pair"):
        for layer, kind in product(places, KINDS):
            if kind == "placebo" and source != base:
                continue  # its direction is random: the source hardly matters
            of = swap.pairs.base.starts
            outcomes, before = _halves(swap.stream(layer, kind), of), _halves(swap.intact, of)
            for half, outcome in outcomes.items():
                if not len(outcome.says["own"]):
                    continue
                where = {"source": source, "base": base, "half": half, "layer": layer}
                where |= {"kind": kind, "n": len(outcome.says["own"])}
                rows.append(where | outcome.row(before[half], at["seed"]))
    return pd.DataFrame(rows)


def _best(layers: pd.DataFrame) -> int | None:
    """The layer where another task's deviation most often gives the wanted answer."""
    rows = layers[(layers["source"] != layers["base"]) & (layers["kind"] == "deviation")]
    means = rows[rows["half"] == "choosing"].groupby("layer")[["wanted", "shift"]].mean()
    means = means.sort_values(["wanted", "shift"])
    return int(means.index[-1]) if means["wanted"].max() > 0 else None


def _heads(
    at: Setting,
    swaps: Mapping[tuple[str, str], Swap],
    circuits: Mapping[str, set[Component]],
    shared: list[Component],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Swaps of heads: the shared ones, each alone, a task's own, random ones of like layers."""
    draws = matched(at.model, shared, at["n_swapped_random"], at["seed"])
    rows, tests = [], []
    for (source, base), swap in tqdm(swaps.items(), desc="Heads", unit="pair"):
        own = circuits[base] - set(shared)
        sets = {"shared heads": shared, "own heads": sorted(own)}
        sets |= {f"head {head}": [head] for head in shared} if len(shared) > 1 else {}
        shifts = {}
        for (name, heads), kind in product(sets.items(), ("deviation", "raw")):
            if heads and (kind == "deviation" or name == "shared heads"):
                outcome = swap.heads(heads, kind)
                shifts[name, kind] = outcome.shift(swap.intact)
                rows.append(_row(at, source, base, name, len(heads), kind, outcome, swap))
        random = [swap.heads(draw, "deviation") for draw in draws]
        if random:
            rows.append(
                {"source": source, "base": base, "set": "random heads", "n_heads": len(shared)}
                | {"kind": "deviation", "n": len(swap.pairs)}
                | _of_random(random, swap, at["seed"])
            )
        if random and source != base:
            shift = shifts["shared heads", "deviation"].mean().item()
            null = [one.shift(swap.intact).mean().item() for one in random]
            tests.append(
                {"source": source, "base": base, "draws": len(null)}
                | {"shift": shift, "random": float(np.mean(null)), "p": percentile_p(shift, null)}
            )
    tested = pd.DataFrame(tests) if tests else Interchange.empty("tests")
    return pd.DataFrame(rows), tested.assign(q=corrected(tested["p"]))


def _of_random(random: Sequence[Outcome], swap: Swap, seed: int) -> dict[str, float]:
    """As :meth:`Outcome.row`, of several sets: bounds are over sets and prompts."""
    rows = pd.DataFrame([one.row(swap.intact, seed) for one in random])
    found = rows.mean().to_dict()
    parts = {
        "wanted": torch.stack([one.says["wanted"] for one in random]),
        "shift": torch.stack([one.shift(swap.intact) for one in random]),
    }
    for name, values in parts.items():  # [set, n]
        both = over_both(values, seed)
        found |= {f"{name}_low": both.low, f"{name}_high": both.high}
    return found


def _row(
    at: Setting,
    source: str,
    base: str,
    name: str,
    size: int,
    kind: str,
    outcome: Outcome,
    swap: Swap,
) -> dict[str, Any]:
    where = {"source": source, "base": base, "set": name, "n_heads": size, "kind": kind}
    return where | {"n": len(swap.pairs)} | outcome.row(swap.intact, at["seed"])


def _subspace(at: Setting, swaps: Mapping[tuple[str, str], Swap], layer: int) -> pd.DataFrame:
    """Directions found on one pair of tasks with discovery prompts, tried on all."""
    first, second = list(dict.fromkeys(source for source, _ in swaps))[:2]
    few = range(min(at["n_swapped"], at["n_prompts"]))
    sets = [at.sets(task).discovery for task in (second, first)]
    fitted = pairs(at.model, sets[0][few], sets[1], at["seed"])
    options = {"rank": at["das_rank"], "epochs": at["das_epochs"], "seed": at["seed"]}
    basis = subspace(at.model, fitted, layer, **options)
    random = torch.linalg.qr(
        torch.randn(basis.shape, generator=torch.Generator().manual_seed(at["seed"]))
    ).Q.to(basis)
    rows = []
    for (source, base), swap in swaps.items():
        for name, some in (("found", basis), ("random", random)):
            outcome = swap.stream(layer, "raw", some)  # as it was fitted
            rows.append(
                {"fitted": f"{first} to {second}", "source": source, "base": base}
                | {"directions": name, "n": len(swap.pairs)}
                | outcome.row(swap.intact, at["seed"])
            )
    return pd.DataFrame(rows)
