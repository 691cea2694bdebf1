"""What each component does: where heads look, what they write, what MLPs add, and the roles."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import torch

from seqcirc_utils.analyses import roles
from seqcirc_utils.analyses.attention import ATTENTION_EVIDENCE
from seqcirc_utils.analyses.lens import Lens, lens
from seqcirc_utils.analyses.observation import Observation, attention_table, observe, patterns
from seqcirc_utils.analyses.roles import EVIDENCE_COLUMNS
from seqcirc_utils.analyses.shuffling import shuffled_weights
from seqcirc_utils.analyses.writes import (
    ORDINALS,
    bare_sequences,
    direct_writes,
    member_indices,
    ov_ranks,
    ov_table,
    p_values,
    spellings,
    word_hits,
)
from seqcirc_utils.chapters.circuit_discovery import CircuitDiscovery
from seqcirc_utils.chapters.findings import Findings, array, each, table
from seqcirc_utils.chapters.patching import Patching
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.components import Component
from seqcirc_utils.errors import UserError, section
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.prompts import Prompts
from seqcirc_utils.prompts.scores import score
from seqcirc_utils.prompts.vocabulary import Vocabulary, vocabulary
from seqcirc_utils.statistics import intervals

RANDOM_ORDER = tuple(f"members_to_members_random{end}" for end in ("", "_low", "_high"))
"""Attention from members to members that stand in random order, with its 95% interval."""


@dataclass(frozen=True, kw_only=True)
class ComponentRoles(Findings):
    """What each head and MLP does on clean prompts, and the role that follows by the rules.

    Attention is a share of what a token pays in all; probabilities and OV scores are shares.

    Attributes:
        components: A row per component: its role (empty where it cannot be told, see ``missing``),
            the share of resamples of the prompts in which it comes out (``confidence``), the most
            frequent other role (``rival``), whether it is ``in_circuit``, the evidence with 95%
            intervals where it decides, attention from members to members in random order, and
            what mean ablation changes (chapter 03). Evidence is empty where it does not apply.
        ov: A row per head, score, input and list of words: the share of members whose own
            (``copy``) or following (``next``) word is among the highest 1, 5 or 10 logits of what
            the head writes, the 95% interval of ``top5``, its p-value against shuffled successors,
            and ``top5`` by the member's place in the prompt.
        lens: A row per layer and part: the change of the lens probability of the answer and of
            the last member, with 95% intervals, and shares of prompts.
        attention: Mean attention between all groups of tokens, of heads that are in the circuit or
            have a role, and what evenly spread attention would give (``spread``).
        patterns: Attention of the example heads on one prompt ``[head, query, key]``.
        thresholds: The cut-offs of the rules.
        spread: What evenly spread attention would give in each column of attention.
        roles: How many components have each role.
        circuit_roles: The same in the circuit.
        shuffled_roles: The same in the model with the rows and columns of all its weights shuffled,
            which has learned nothing; none where roles cannot be told.
        absent_head_roles: Roles that no head of the circuit has; none where that cannot be told.
        examples: The heads of ``patterns``: the most important of each role, then others.
        tokens: The tokens of that prompt.
        marked: Positions there of each "in", each member, and the end.
        templates: How many prompts each template got.
        missing: What does not apply to the model (``ov``, ``direct``, ``lens``, ``shuffled``), and
            why.
    """

    stage = "05_component_roles"

    components: pd.DataFrame = table(
        "csv",
        {"component": str, "layer": int, "head": "Int64", "role": str, "confidence": float}
        | {"in_circuit": bool, "rival": str}
        | each(float, "rival_share", *EVIDENCE_COLUMNS, "p_next", "p_copy")
        | each(float, *RANDOM_ORDER, "ablation"),
    )
    ov: pd.DataFrame = table(
        "ov.csv",
        each(str, "component", "score")
        | each(float, "top1", "top5", "top10", "low", "high", "p")
        | each(float, "place 1", "place 2", "place 3", "place 4")
        | each(str, "input", "words"),
    )
    lens: pd.DataFrame = table(
        "lens.csv",
        {"part": str, "layer": int}
        | each(float, "next", "next_low", "next_high", "last", "last_low", "last_high")
        | each(float, "overtakes", "switches"),
    )
    attention: pd.DataFrame = table(
        "attention.csv",
        each(str, "component", "query", "key") | each(float, "mean", "low", "high", "spread"),
    )
    patterns: np.ndarray = array()
    thresholds: dict[str, float]
    spread: dict[str, float]
    roles: dict[str, int]
    circuit_roles: dict[str, int]
    shuffled_roles: dict[str, int]
    absent_head_roles: list[str] | None
    examples: list[str]
    tokens: list[str]
    marked: list[int]
    templates: str
    missing: dict[str, str]

    def by_component(self) -> dict[Component, str]:
        """The role of every component (``none``: it fits no rule).

        Raises:
            UserError: where the roles of heads or of MLPs cannot be told for this model.
        """
        if (self.components["role"] == "").any():
            raise UserError(f"not all roles can be told: {' '.join(self.missing.values())}")
        names = map(Component.parse, self.components["component"])
        return dict(zip(names, self.components["role"], strict=True))

    @classmethod
    def measure(cls, at: Setting) -> Self:
        """Observe the model on clean prompts and apply the rules; see the class."""
        lm, seed, prompts = at.model, at["seed"], at.sets().evaluation
        words = vocabulary(at["task"], lm.tokenizer)
        ablation = at.read(Patching).effects.set_index("component")["ablation"]
        circuit = at.read(CircuitDiscovery).circuit.components
        seen = observe(lm, prompts)
        by_head = seen.evidence()  # column to [layer, head, n]
        by_mlp, p = {}, {}
        missing: dict[str, str] = {}
        ov, steps = cls.empty("ov"), cls.empty("lens")
        with section(missing, "ov"):
            ov, hits, p = _ov(lm, seen, prompts, words, seed)
            by_head |= hits
        with section(missing, "direct"):
            direct = direct_writes(lm, seen, prompts, words)
            by_head |= {f"direct_{name}": values for name, values in direct.items()}
        with section(missing, "lens"):
            read = lens(lm, seen, prompts)
            end = score(lm, prompts).answer_prob
            assert (read.next[-1] - end).abs().max() < 1e-4  # the lens ends in the model
            by_mlp = {f"lens_{name}": values for name, values in read.steps("mlp").items()}
            steps = _steps(read, seed)

        spread = seen.spreads()
        found = roles.component_roles(lm, roles.evidence(by_head, by_mlp), p, spread, seed)
        shuffled: dict[str, int] = {}
        if not missing:
            with section(missing, "shuffled"):
                shuffled = _shuffled(lm, prompts, words, spread, seed)
        name, head = found["component"], found["head"].notna()
        found.insert(5, "in_circuit", name.isin(map(str, circuit)))
        random_order = _in_random_order(lm, at.sets().corrupted, seed)
        for column, values in zip(RANDOM_ORDER, random_order, strict=True):
            found.loc[head, column] = values.numpy()
        found["ablation"] = ablation[name].to_numpy()
        has_role = ~found["role"].isin([roles.NONE, ""])
        inside = found[found["in_circuit"]]
        absent = [r for r in roles.HEAD_ROLES if r not in set(inside["role"])]
        wanted = name[head & (found["in_circuit"] | has_role)].to_list()
        examples = _examples(found[head], at["n_examples"])
        tokens, marked = _example_tokens(lm, prompts)
        return cls(
            components=found,
            ov=ov,
            lens=steps,
            attention=attention_table(lm, seen, wanted, seed) if wanted else cls.empty("attention"),
            patterns=np.stack([v.numpy() for v in patterns(lm, prompts, examples).values()]),
            thresholds=roles.thresholds(),
            spread=spread,
            roles=_counts(found),
            circuit_roles=_counts(inside),
            shuffled_roles=shuffled,
            absent_head_roles=None if (found.loc[head, "role"] == "").any() else absent,
            examples=examples,
            tokens=tokens,
            marked=marked,
            templates=at.tally(),
            missing=missing,
        )


def _ov(
    lm: Model, seen: Observation, prompts: Prompts, words: Vocabulary, seed: int
) -> tuple[pd.DataFrame, dict[str, torch.Tensor], dict[str, np.ndarray]]:
    """OV scores on three inputs, against members and (where they reach) ordinals.

    Returns:
        The table; the evidence ``ov_next`` and ``ov_copy`` on own inputs ``[layer, head, n]``; and
        the p-values of these, ``p_next`` and ``p_copy``, of every head.
    """
    shown = member_indices(prompts, words)  # [n, member]
    bare, bare_shown = bare_sequences(lm, words)
    lists = {"members": words.members}
    if len(words.members) <= len(ORDINALS):
        lists["ordinals"] = ORDINALS
    inputs = {  # streams [layer (or 1), n, member, d_model], and what stands there
        "own": (seen.members, shown),
        "after block 0": (seen.embedded[None], shown),
        "bare sequence": (bare[None], bare_shown),
    }
    sizes, tables = [len(words) for words in lists.values()], []
    hits: dict[str, torch.Tensor] = {}
    p: dict[str, np.ndarray] = {}
    for name, (streams, standing) in inputs.items():
        # [layer, head, n, member, word], for all lists at once
        ranks = ov_ranks(lm, streams, [word for words in lists.values() for word in words])
        for (label, listed), part in zip(lists.items(), ranks.split(sizes, -1), strict=True):
            known = [i for i, form in enumerate(spellings(lm.tokenizer, listed)) if form]
            scores = ov_table(lm, part, standing, known, seed)
            tables.append(scores.assign(input=name, words=label))
            if (name, label) == ("own", "members"):
                p = p_values(scores)
                hits = _hits(part, shown)
    return pd.concat(tables, ignore_index=True), hits, p


def _hits(ranks: torch.Tensor, shown: torch.Tensor) -> dict[str, torch.Tensor]:
    """The evidence ``ov_next`` and ``ov_copy`` ``[layer, head, n]``."""
    return {
        f"ov_{score}": word_hits(ranks, shown, step).float().mean(-1)
        for score, step in (("next", 1), ("copy", 0))
    }


def _shuffled(
    lm: Model, prompts: Prompts, words: Vocabulary, spread: dict[str, float], seed: int
) -> dict[str, int]:
    """How many components get each role by the same rules where all weights are shuffled."""
    shown = member_indices(prompts, words)
    known = [i for i, form in enumerate(spellings(lm.tokenizer, words.members)) if form]
    with shuffled_weights(lm, seed):
        seen = observe(lm, prompts)
        ranks = ov_ranks(lm, seen.members, words.members)
        p = p_values(ov_table(lm, ranks, shown, known, seed))
        direct = direct_writes(lm, seen, prompts, words)
        by_head = seen.evidence() | _hits(ranks, shown)
        by_head |= {f"direct_{name}": values for name, values in direct.items()}
        by_mlp = {f"lens_{k}": values for k, values in lens(lm, seen, prompts).steps("mlp").items()}
    told = roles.evidence(by_head, by_mlp)
    return _counts(roles.component_roles(lm, told, p, spread, seed, draws=1))


def _steps(read: Lens, seed: int) -> pd.DataFrame:
    """Change of the lens across each attention layer, each MLP and each block."""
    tables = []
    for part in ("attention", "mlp", "block"):
        steps = read.steps(part)  # [layer, n] each
        table: dict[str, Any] = {"part": part, "layer": range(len(steps["next"]))}
        for name in ("next", "last"):
            bounds = intervals(steps[name], seed)
            table |= dict(zip((name, f"{name}_low", f"{name}_high"), bounds, strict=True))
        table |= {name: steps[name].mean(1) for name in ("overtakes", "switches")}
        tables.append(pd.DataFrame(table))
    return pd.concat(tables, ignore_index=True)


def _in_random_order(lm: Model, corrupted: Prompts, seed: int) -> tuple[torch.Tensor, ...]:
    """Attention from members to members that stand at random: mean and 95% bounds ``[head]``."""
    groups = ATTENTION_EVIDENCE["members_to_members"]
    return intervals(observe(lm, corrupted).attended(*groups).flatten(0, 1), seed)


def _examples(heads: pd.DataFrame, n: int) -> list[str]:
    """The circuit's most important head of each role, then others by importance, then any."""
    ranked = heads.sort_values("ablation", kind="stable")  # most negative: most important
    inside = ranked[ranked["in_circuit"]]
    with_role = inside[~inside["role"].isin([roles.NONE, ""])]
    leaders = with_role.drop_duplicates("role")
    order = pd.concat([leaders, with_role, inside, ranked])["component"].drop_duplicates()
    return sorted(order[:n], key=Component.parse)


def _example_tokens(lm: Model, prompts: Prompts) -> tuple[list[str], list[int]]:
    """The first prompt's tokens, and where its "in", its members and its end stand."""
    tokens = prompts.tokens[0].tolist()
    marked = {*prompts.member_positions[0].tolist(), *prompts.in_positions[0].tolist()}
    return [lm.tokenizer.decode([i]) for i in tokens], sorted({*marked, len(tokens) - 1})


def _counts(table: pd.DataFrame) -> dict[str, int]:
    """How many components have each role, where it can be told."""
    return table.loc[table["role"] != "", "role"].value_counts().to_dict()
