"""Tiny models of any architecture that continue the paper's three sequences, trained in seconds.

Random weights cannot do the tasks, and a task that a model cannot do is skipped.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from seqcirc_utils import store
from seqcirc_utils.models import loading
from seqcirc_utils.prompts import drawing, probes, questions, sequences
from seqcirc_utils.prompts import prompts as prompts_module

sys.path.append(str(store.ROOT / "tests"))  # GPT-2's tokenizer is test data

import tokenizers_made  # noqa: E402

STEPS = 1500
LEARNT = 0.02
"""Loss on a batch, in nats, below which no more steps are taken; ``STEPS`` are the most."""


def words() -> Any:
    """A tokenizer of whole words: all that the stages write."""
    texts = [f"{word} {word}" for task in sequences.TASKS.values() for word in task.members]
    for template in sequences.TEMPLATES.values():
        texts += [f" {template.verb} in. {f} {f}" for f in template.fillers]
    for probe in probes.probes():
        texts += [f"{q.context}{q.answer}{q.wrong}{q.corrupted}" for q in probe.questions]
    return tokenizers_made.tokenizer_of(r" ?\d+", texts)


def train(
    config: Any,
    directory: Path,
    names: list[str],
    tokenizer: Any,
    prepend: str = "auto",
    asked: Sequence[str] = (),
    *,
    templates: Sequence[str] = ("born",),
    device: str = "cpu",
    rate: float = 3e-3,
) -> float:
    """Save a model of this configuration that continues these sequences and answers these probes.

    Args:
        config: Its configuration; the size of the vocabulary is set here.
        directory: Where it is saved, with the tokenizer.
        names: The tasks.
        tokenizer: Its tokenizer.
        prepend: What stands in front of prompts, as ``loading.load`` takes it.
        asked: Probes whose questions it is trained to answer too, in one token each.
        templates: Sentences around the sequences.
        device: Where it is trained.
        rate: The learning rate; a large model wants a smaller one.

    Returns:
        Its accuracy on other prompts of the tasks.
    """
    torch.manual_seed(0)
    config.vocab_size = len(tokenizer)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    network = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    network.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    # For its tokenizer as it is read again, and what it puts in front.
    lm = loading.load(str(directory), "cpu", prepend=prepend)

    def loss(batch: list[prompts_module.Prompts]) -> torch.Tensor:
        tokens, ids = (torch.cat([getattr(b, k) for b in batch]) for k in ("tokens", "answer_ids"))
        return off_by(tokens.to(device), ids.to(device))

    def off_by(tokens: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(answered(tokens), ids)

    def answered(tokens: torch.Tensor) -> torch.Tensor:
        return network(tokens, use_cache=False, logits_to_keep=1).logits[:, -1]

    seen = [drawing.clean_prompts(lm, name, 512, seed=1, templates=templates) for name in names]
    unseen = [drawing.clean_prompts(lm, name, 64, seed=2, templates=templates) for name in names]
    fitted = (
        [questions.fit(lm, probe, probes.POOL) for probe in probes.probes(asked)] if asked else []
    )
    texts = [batch.tokens for probe in fitted for batch in questions.batches_of(probe.right)]
    network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    for _ in tqdm(range(STEPS), desc="Training", unit="step", disable=None):
        rows = torch.randint(512, (32,)).tolist()
        batches: dict[int, list[prompts_module.Prompts]] = defaultdict(list)
        for prompts in seen:  # those of one length go together
            batches[prompts.tokens.shape[1]].append(prompts[rows])
        losses = [loss(batch) for batch in batches.values()]
        for text in texts:
            some = text[torch.randint(len(text), (16,))].to(device)
            losses.append(off_by(some[:, :-1], some[:, -1]))
        off = torch.stack(losses).max()
        if off < LEARNT:
            break
        optimizer.zero_grad()
        off.backward()
        optimizer.step()
    network.eval().cpu().save_pretrained(directory)
    with torch.inference_mode():
        right = torch.cat([answered(p.tokens).argmax(-1) == p.answer_ids for p in unseen])
    return right.float().mean().item()
