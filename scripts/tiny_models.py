"""Tiny models of any architecture that continue the paper's three sequences, trained in seconds.

Random weights cannot do the tasks, and a task that a model cannot do is skipped.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from seqcirc_utils import store
from seqcirc_utils.models import loading
from seqcirc_utils.prompts import drawing
from seqcirc_utils.prompts import prompts as prompts_module

sys.path.append(str(store.ROOT / "tests"))  # GPT-2's tokenizer is test data

import tokenizers_made  # noqa: E402

STEPS = 200


def train(
    config: Any, directory: Path, names: list[str], prepend: str = "auto", steps: int = STEPS
) -> float:
    """Save a model of this configuration that continues these sequences, with GPT-2's tokenizer.

    Returns:
        Its accuracy on other prompts.
    """
    torch.manual_seed(0)
    tokenizer = tokenizers_made.gpt2_tokenizer()
    config.vocab_size = len(tokenizer)
    config.bos_token_id = config.eos_token_id = tokenizer.bos_token_id
    network = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    network.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    # For its tokenizer as it is read again, and what it puts in front.
    lm = loading.load(str(directory), "cpu", prepend=prepend)

    def answered(prompts: prompts_module.Prompts) -> torch.Tensor:
        return network(prompts.tokens, use_cache=False, logits_to_keep=1).logits[:, -1]

    seen = [drawing.clean_prompts(lm, name, 512, seed=1) for name in names]
    unseen = [drawing.clean_prompts(lm, name, 64, seed=2) for name in names]
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    network.train()
    for _ in tqdm(range(steps), desc="Training", unit="step"):
        rows = torch.randint(512, (32,)).tolist()
        batches = [prompts[rows] for prompts in seen]
        losses = [torch.nn.functional.cross_entropy(answered(b), b.answer_ids) for b in batches]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
    network.eval().save_pretrained(directory)
    with torch.inference_mode():
        right = torch.cat([answered(p).argmax(-1) == p.answer_ids for p in unseen])
    return right.float().mean().item()
