"""Does every notebook run on a model of GPT-2's architecture, with all three tasks?

Trains a tiny GPT-2 with GPT-2's own tokenizer and nothing in front of prompts, as in the paper, so
that numerals of two digits are one token; runs every stage on it as ``make book MODEL=directory``
does, and fails if any was skipped.

    python scripts/gpt2_proof.py [params/default.yml]
"""

import sys
import tempfile
from pathlib import Path

import tiny_models
import tokenizers_made
import yaml
from transformers import GPT2Config

from seqcirc_utils import commands, store
from seqcirc_utils.workflow import records, stages
from seqcirc_utils.workflow.planning import read_plan

SIZE = {"n_positions": 256, "n_embd": 64, "n_layer": 3, "n_head": 4}


def main(arguments: list[str]) -> int:
    """Train, run every stage, and tell."""
    params = Path(arguments[0] if arguments else store.ROOT / "params" / "default.yml")
    directory = store.ROOT / "_build" / "tiny-gpt2"
    with tempfile.TemporaryDirectory(prefix="gpt2_proof.") as temporary:
        file = Path(temporary) / "gpt2_proof.yml"  # results are named by the file
        given = yaml.safe_load(params.read_text(encoding="utf-8")) | {"prepend": "none"}
        file.write_text(yaml.safe_dump(given), encoding="utf-8")
        tasks = list(read_plan(file).tasks)
        tokenizer, config = tokenizers_made.gpt2_tokenizer(), GPT2Config(**SIZE)
        accuracy = tiny_models.train(config, directory, tasks, tokenizer, prepend="none")
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
