"""What a reader can try by hand: parts switched off, for a few prompts, and what the model says."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import record
from seqcirc_utils.analyses.interchange import Ends, Swap, every_pair
from seqcirc_utils.analyses.patterns import patterns
from seqcirc_utils.chapters.circuit_discovery import CircuitDiscovery
from seqcirc_utils.chapters.findings import Findings, array, each, table
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.components import Component
from seqcirc_utils.errors import CannotDo, UserError, section
from seqcirc_utils.prompts.prompts import Prompts
from seqcirc_utils.prompts.scores import Scores
from seqcirc_utils.prompts.sequences import TASKS

TOP = 5
"""How many of the model's next tokens are kept."""
TOKENS = [f"token_{i + 1}" for i in range(TOP)]
SHARES = [f"p_{i + 1}" for i in range(TOP)]
_TOP = each(int, *TOKENS) | each(float, *SHARES)


@dataclass(frozen=True, kw_only=True)
class Explore(Findings):
    """A few held-out prompts of each task, and what the model says of them when it is changed.

    Next tokens are ids, the likeliest first (``token_1`` …), with their probabilities (``p_1`` …)
    over the whole vocabulary.

    Attributes:
        prompts: A row per prompt, numbered within its ``task``; its answer and the last member it
            shows are token ids.
        ablated: A row per prompt and ``part``: what the model says with it mean-ablated, by the
            means of the prompt's task; ``logit_diff`` is that of the answer and the last member.
        parts: A row per thing to switch off, in order: its ``kind`` (``intact``, ``component``,
            ``core`` or a task's ``circuit``), the ``task``, whether it is ``kept`` while all else
            is ablated, and how many components are ablated.
        swaps: A row per prompt that is changed (``base``), prompt that what is put in comes from
            (``source``) and ``layer``: what the model says when the source's deviation from its
            task's mean, on top of the base task's, stands before that block at the last token.
            ``wanted_id`` is the interchanged answer, the base task's member at the source's place;
            ``wanted``, ``own`` and ``token`` are the probabilities of it, of the base's answer and
            of the source's.
        heads: A row per head whose attention is shown, those of most circuits first: the ``tasks``
            whose circuit holds it, with spaces between.
        attention: Where these heads look in the first prompt of each task, and in its corrupted
            partner: ``[task, 2, head, query, key]``, zero beyond a prompt's end.
        read: Task to the tokens of this prompt and of its partner, as ids.
        n_heads: How many heads the circuits hold, shown or not.
        n_layers: How many blocks the model has.
        n_swap_means: Prompts behind the means of the swaps.
        tokens: Token id to its text, for all tokens in tables.
        title: The model's title.
        n_means: Prompts behind the means.
        left_out: Tasks that are not shown, and why.
        missing: Sections that do not apply, and why.
    """

    stage = "14_explore"

    prompts: pd.DataFrame = table(
        "prompts.csv", task=str, prompt=int, text=str, answer_id=int, last_id=int
    )
    parts: pd.DataFrame = table("parts.csv", part=str, kind=str, task=str, kept=bool, n_ablated=int)
    ablated: pd.DataFrame = table(
        "ablated.csv", {"task": str, "prompt": int, "part": str, "logit_diff": float} | _TOP
    )
    swaps: pd.DataFrame = table(
        "swaps.csv",
        {"source": str, "source_prompt": int, "base": str, "base_prompt": int, "layer": int}
        | {"wanted_id": int}
        | each(float, "wanted", "own", "token")
        | _TOP,
    )
    heads: pd.DataFrame = table("heads.csv", head=str, tasks=str)
    attention: np.ndarray = array()
    read: dict[str, list[list[int]]]
    n_heads: int
    tokens: dict[str, str]
    n_layers: int
    n_swap_means: int
    title: str
    n_means: int
    left_out: dict[str, str]
    missing: dict[str, str]

    @classmethod
    def measure(cls, at: Setting) -> Self:
        """Try everything on the first evaluation prompts of each task; see the class."""
        lm, missing = at.model, {}
        circuits, left_out = _circuits(at)
        chosen = {task: at.sets(task).evaluation[_few(at)] for task in circuits}
        tables = {name: cls.empty(name) for name in ("parts", "ablated", "swaps")}
        with section(missing, "ablated"):
            tables["parts"], tables["ablated"] = _ablated(at, circuits, chosen)
        with section(missing, "swaps"):
            tables["swaps"] = _swaps(at, chosen)
        heads = _heads(circuits)
        tables["heads"] = heads[: max(0, at["n_attention"])]
        attention, read = np.zeros((0, 2, 0, 0, 0)), {}
        with section(missing, "attention"):
            attention, read = _attention(at, chosen, tables["heads"]["head"])
        tables["prompts"] = _listed(chosen)
        ids = {int(i) for frame in tables.values() for i in _ids(frame)}
        ids |= {i for both in read.values() for row in both for i in row}
        return cls(
            tokens={str(i): lm.tokenizer.decode([i]) for i in sorted(ids)},
            attention=attention,
            read=read,
            n_heads=len(heads),
            n_layers=lm.n_layers,
            n_swap_means=at["n_prompts"],
            title=lm.facts.title,
            n_means=at["n_means"],
            left_out=left_out,
            missing=missing,
            **tables,
        )


def _few(at: Setting) -> range:
    """The evaluation prompts that are shown."""
    return range(min(at["n_shown"], at["n_prompts"]))


def _circuits(at: Setting) -> tuple[dict[str, set[Component]], dict[str, str]]:
    """Each task's circuit, and the tasks without one.

    Raises:
        CannotDo: where no task has one.
    """
    found, left_out = {}, {}
    for task in at["tasks"]:
        with section(left_out, TASKS[task].title):
            found[task] = at.read(CircuitDiscovery, task).circuit.components
    if not found:
        raise CannotDo("No task has a circuit: there is nothing to switch off.")
    return found, left_out


def _listed(chosen: Mapping[str, Prompts]) -> pd.DataFrame:
    parts = [
        pd.DataFrame(
            {"task": task, "prompt": range(len(prompts)), "text": prompts.texts}
            | {"answer_id": prompts.answer_ids.numpy(), "last_id": prompts.last_ids.numpy()}
        )
        for task, prompts in chosen.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _ids(frame: pd.DataFrame) -> list[int]:
    """All token ids of a table."""
    names = [c for c in (*TOKENS, "answer_id", "last_id", "wanted_id") if c in frame]
    return frame[names].to_numpy().ravel().tolist()


def _sets(circuits: Mapping[str, set[Component]]) -> list[tuple[dict[str, Any], set[Component]]]:
    """What can be switched off, or kept alone: how it is listed, and its components."""
    core = set.intersection(*circuits.values())
    found: list[tuple[dict[str, Any], set[Component]]] = [
        ({"part": "intact", "kind": "intact", "task": "", "kept": False}, set())
    ]
    for component in sorted(core, key=lambda c: (c.head is None, c)):
        row = {"part": str(component), "kind": "component", "task": "", "kept": False}
        found.append((row, {component}))
    groups = [("core", "", core)] if core else []
    groups += [("circuit", task, circuit) for task, circuit in circuits.items()]
    for kind, task, members in groups:
        for kept in (False, True):
            part = f"{task or kind}-{'alone' if kept else 'off'}"
            found.append(({"part": part, "kind": kind, "task": task, "kept": kept}, members))
    return found


def _ablated(
    at: Setting, circuits: Mapping[str, set[Component]], chosen: Mapping[str, Prompts]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The parts, and what the model says without each, or with each alone."""
    listed, rows, counts = _sets(circuits), [], []
    for task, prompts in chosen.items():
        evaluator = Evaluator(at.model, prompts, at.means(task))
        removed = [evaluator.outside([s])[0] if row["kept"] else s for row, s in listed]
        counts = [len(s) for s in removed]

        def read(stream: torch.Tensor, evaluator: Evaluator = evaluator) -> tuple:
            logits = evaluator.logits(stream)  # [set, n, vocab]
            return Scores.read(logits, evaluator.prompts).logit_diff, *top(logits)

        difference, ids, shares = evaluator.each(removed, read, progress=TASKS[task].title)
        for i, (row, _) in enumerate(listed):
            for n in range(len(prompts)):
                where = {"task": task, "prompt": n, "part": row["part"]}
                where["logit_diff"] = difference[i, n].item()
                rows.append(where | said(ids[i, n], shares[i, n]))
    parts = [row | {"n_ablated": n} for (row, _), n in zip(listed, counts, strict=True)]
    return pd.DataFrame(parts), pd.DataFrame(rows)


def _swaps(at: Setting, chosen: Mapping[str, Prompts]) -> pd.DataFrame:
    """Every prompt's place in its sequence, put into every other prompt, layer by layer.

    Raises:
        UserError: for a model whose last stream says nothing.
        CannotDo: where no two prompts fit.
    """
    lm, last = at.model, at.model.n_layers
    places = sorted({*range(0, last, at["swap_step"]), last})
    # The mean of prompts that are in no pair, as in the chapter on interchange.
    means = {task: Ends.of(record(lm, at.sets(task).discovery)).mean() for task in chosen}
    rows, refused = [], ""
    for source, base in tqdm(list(product(chosen, repeat=2)), desc="Swaps", unit="pair"):
        try:
            pairs = every_pair(lm, chosen[base], chosen[source])
        except CannotDo as reason:
            refused = str(reason)
            continue
        swap = Swap(lm, pairs, means[base], means[source], seed=at["seed"])
        numbers = _numbers(chosen[base], pairs.base), _numbers(chosen[source], pairs.source)
        for layer in places:
            logits = swap.logits(swap.last(layer, "deviation"))
            (ids, shares), every = top(logits), logits.softmax(-1).cpu()
            for i in range(len(pairs)):
                row = {"source": source, "source_prompt": numbers[1][i], "base": base}
                row |= {"base_prompt": numbers[0][i], "layer": layer}
                row["wanted_id"] = int(pairs.wanted[i])
                row |= {name: every[i, t[i]].item() for name, t in pairs.outcomes().items()}
                rows.append(row | said(ids[i], shares[i]))
    if not rows:
        raise CannotDo(refused)
    return pd.DataFrame(rows)


def _numbers(chosen: Prompts, paired: Prompts) -> list[int]:
    """Which of the chosen prompts each of the paired ones is."""
    return [chosen.texts.index(text) for text in paired.texts]


def _heads(circuits: Mapping[str, set[Component]]) -> pd.DataFrame:
    """The heads of all circuits, those of most circuits first."""
    held = {
        head: [task for task, circuit in circuits.items() if head in circuit]
        for head in set().union(*circuits.values())
        if head.head is not None
    }
    order = sorted(held, key=lambda head: (-len(held[head]), head))
    rows = [{"head": str(head), "tasks": " ".join(held[head])} for head in order]
    return pd.DataFrame(rows, columns=["head", "tasks"])


def _attention(
    at: Setting, chosen: Mapping[str, Prompts], heads: pd.Series
) -> tuple[np.ndarray, dict[str, list[list[int]]]]:
    """Where heads look in each task's first prompt and its partner, and the tokens of both.

    Raises:
        UserError: without heads, or for a model whose attention is not seen.
    """
    if heads.empty:
        raise UserError("there is no head to show: no circuit holds one, or n_attention is 0.")
    parsed, found, read = [Component.parse(name) for name in heads], [], {}
    for task, prompts in chosen.items():
        pair = [prompts[[0]], at.sets(task).corrupted[[0]]]
        read[task] = [one.tokens[0].tolist() for one in pair]
        found.append([patterns(at.model, one, parsed)[0] for one in pair])
    most = max(len(row) for both in read.values() for row in both)
    whole = np.zeros((len(found), 2, len(parsed), most, most), dtype=np.float32)
    for i, both in enumerate(found):
        for j, pattern in enumerate(both):
            n = pattern.shape[-1]
            whole[i, j, :, :n, :n] = pattern.numpy()
    return whole, read


def top(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest next tokens of logits ``[…, vocab]``: ids and probabilities ``[…, TOP]``."""
    found = logits.float().softmax(-1).topk(TOP)
    return found.indices.cpu(), found.values.cpu()


def said(ids: torch.Tensor, shares: torch.Tensor) -> dict[str, float]:
    """The columns of one answer, from :func:`top`'s row."""
    tokens = dict(zip(TOKENS, ids.tolist(), strict=True))
    return tokens | dict(zip(SHARES, shares.tolist(), strict=True))
