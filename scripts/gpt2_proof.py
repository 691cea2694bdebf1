"""Does every notebook run on a model of GPT-2's architecture, with all three tasks?

Random weights cannot do the tasks, and a task that a model cannot do is skipped. So this trains a
tiny GPT-2 for a few seconds to continue the three sequences, saves it as a directory in Hugging
Face format, runs every stage on it as ``make book MODEL=directory`` does, and fails if any was
skipped.

    python scripts/gpt2_proof.py [params/default.yml]
"""

import shutil
import sys
import tempfile
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from seqcirc_utils import commands, store
from seqcirc_utils.models import fetching, loading, zoo
from seqcirc_utils.prompts import drawing
from seqcirc_utils.prompts import prompts as prompts_module
from seqcirc_utils.workflow import records, stages
from seqcirc_utils.workflow.planning import read_plan

SIZE = {"n_positions": 256, "n_embd": 64, "n_layer": 3, "n_head": 4}
STEPS = 200


def train(directory: Path, names: list[str]) -> float:
    """Save a tiny GPT-2 that continues these sequences; return its accuracy on other prompts."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(fetching.fetch(zoo.DEFAULT))
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    network = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **SIZE, **ends))
    network.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    lm = loading.load(str(directory), "cpu")  # for its tokenizer, and what it puts in front

    def answered(prompts: prompts_module.Prompts) -> torch.Tensor:
        final = network.transformer(prompts.tokens).last_hidden_state[:, -1]
        return network.lm_head(final)

    seen = [drawing.clean_prompts(lm, name, 512, seed=1) for name in names]
    unseen = [drawing.clean_prompts(lm, name, 64, seed=2) for name in names]
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in tqdm(range(STEPS), desc="Training", unit="step"):
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


def main(arguments: list[str]) -> int:
    """Train, run every stage, and tell."""
    params = Path(arguments[0] if arguments else store.ROOT / "params" / "default.yml")
    directory = store.ROOT / "_build" / "tiny-gpt2"
    with tempfile.TemporaryDirectory(prefix="gpt2_proof.") as temporary:
        file = Path(temporary) / "gpt2_proof.yml"  # results are named by the file
        shutil.copyfile(params, file)
        accuracy = train(directory, list(read_plan(file).tasks))
        print(f"=== The tiny GPT-2 answers {accuracy:.0%} of unseen prompts rightly.")
        if status := commands.main(["run", "--params", str(file), "--model", str(directory)]):
            return status
        jobs = read_plan(file, str(directory)).jobs()
        skipped = {job.name: records.skipped(job.record) for job in jobs}
    if missing := {name: reason for name, reason in skipped.items() if reason}:
        print(f"FAILED: skipped: {missing}", file=sys.stderr)
        return 1
    print(f"PASSED: {len(skipped)} runs of {len(stages.STAGES)} notebooks, none skipped.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
