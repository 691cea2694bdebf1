"""Does every notebook run on a model of GPT-2's architecture, with all three tasks?

Trains a tiny GPT-2 with GPT-2's own tokenizer and nothing in front of prompts, as in the paper, so
that numerals of two digits are one token; runs every notebook that has to do with the model, and
fails if any was skipped. They run one after another in this process: `make book` shows that each
runs in a kernel of its own, and to start those takes longer than a tiny model's results.

    python scripts/gpt2_proof.py [params/default.yml]
"""

import contextlib
import shutil
import sys
import tempfile
import time
from pathlib import Path

import proof
import tiny_models
import tokenizers_made
import yaml
from transformers import GPT2Config

from seqcirc_utils import store
from seqcirc_utils.errors import CannotDo
from seqcirc_utils.workflow import records, stages
from seqcirc_utils.workflow.parameters import declared
from seqcirc_utils.workflow.planning import read_plan

SIZE = {"n_positions": 256, "n_embd": 64, "n_layer": 3, "n_head": 4}
# On two prompts, the constant answer of an empty circuit may be ahead of the model's by chance.
PROMPTS = {"n_prompts": 12, "n_judged": 11}


def main(arguments: list[str]) -> int:
    """Train, run every stage, and tell."""
    params = Path(arguments[0] if arguments else store.ROOT / "params" / "default.yml")
    directory = store.ROOT / "_build" / "tiny-gpt2"
    with tempfile.TemporaryDirectory(prefix="gpt2_proof.") as temporary:
        file = Path(temporary) / "gpt2_proof.yml"  # results are named by the file
        given = yaml.safe_load(params.read_text(encoding="utf-8")) | PROMPTS | {"prepend": "none"}
        file.write_text(yaml.safe_dump(given), encoding="utf-8")
        tasks = list(read_plan(file).tasks)
        tokenizer, config = tokenizers_made.gpt2_tokenizer(), GPT2Config(**SIZE)
        accuracy = tiny_models.train(config, directory, tasks, tokenizer, prepend="none")
        print(f"=== The tiny GPT-2 answers {accuracy:.0%} of unseen prompts rightly.")
        plan = read_plan(file, str(directory))
        shutil.rmtree(plan.directory(), ignore_errors=True)
        shell = proof.a_shell()
        skipped = {}
        for job in plan.jobs():
            if not (stages.STAGES[job.stage].needs or "device" in declared(job.stage)):
                continue  # its models are built by hand: it is the same for every model
            begun = time.process_time()
            with contextlib.suppress(CannotDo):  # its record says why
                proof.run_stage(shell, job)
            skipped[job.name] = records.skipped(job.record)
            if not job.is_current():
                raise AssertionError(f"{job.name} is not current after its run")
            print(f"{job.name}: {time.process_time() - begun:.0f} CPU-seconds", flush=True)
    if missing := {name: reason for name, reason in skipped.items() if reason}:
        print(f"FAILED: skipped: {missing}", file=sys.stderr)
        return 1
    print(f"PASSED: {len(skipped)} runs of notebooks, none skipped.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
