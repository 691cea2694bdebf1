"""What the paper's own size takes on a GPU: 1,536 prompts and the shape of GPT-2 Small.

A model of that shape, with GPT-2's own tokenizer, is trained on the paper's sequences and sentences
first: no hub is asked for anything, and its circuits are not those of GPT-2. The notebooks run one
after another in this process, so that starting kernels is not counted. Writes what each took, after
each, into ``benchmarks/paper_size.json``.

    python benchmarks/paper_size.py [--device cuda] [--stages 5] [--tasks months] [--prompts 1536]
"""

import argparse
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
import yaml

from seqcirc_utils import store
from seqcirc_utils.errors import UserError
from seqcirc_utils.models.devices import working
from seqcirc_utils.workflow.fingerprint import versions
from seqcirc_utils.workflow.parameters import declared
from seqcirc_utils.workflow.planning import read_plan

sys.path.append(str(store.ROOT / "scripts"))

import proof  # noqa: E402
import tiny_models  # noqa: E402
import tokenizers_made  # noqa: E402

FILE = store.ROOT / "benchmarks" / "paper_size.json"
SMALL = {"n_embd": 768, "n_layer": 12, "n_head": 12}
"""GPT-2 Small."""


def main() -> None:
    """Train, run, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--stages", type=int, default=5, help="the last stage's number")
    parser.add_argument("--tasks", nargs="+", default=["months"])
    parser.add_argument("--prompts", type=int, default=1536)
    parser.add_argument("--width", type=int, default=SMALL["n_embd"], help="to try this script")
    parser.add_argument("--output", type=Path, default=FILE)
    asked = parser.parse_args()
    try:
        device = working(asked.device)
    except UserError as error:
        parser.error(str(error))
    given = yaml.safe_load((store.ROOT / "params" / "paper.yml").read_text(encoding="utf-8"))
    templates = given["templates"]
    given |= {"tasks": asked.tasks, "device": device, "prepend": "none"}
    given |= {"n_prompts": asked.prompts, "n_means": asked.prompts}
    with tempfile.TemporaryDirectory(prefix="paper_size.") as temporary:
        file, directory = Path(temporary) / "paper_size.yml", Path(temporary) / "model"
        file.write_text(yaml.safe_dump(given), encoding="utf-8")
        config = proof.transformers.GPT2Config(**SMALL | {"n_embd": asked.width})
        tokenizer = tokenizers_made.gpt2_tokenizer()
        where = {"templates": templates, "device": device, "rate": 3e-4}
        tiny_models.train(config, directory, asked.tasks, tokenizer, "none", **where)
        plan, shell, rows = read_plan(file, str(directory)), proof.a_shell(), []
        try:
            for job in plan.jobs():
                if int(job.stage[:2]) > asked.stages or "device" not in declared(job.stage):
                    continue
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                begun = time.perf_counter()
                proof.run_stage(shell, job)
                row: dict[str, object] = {"stage": job.stage, "task": job.task}
                row["seconds"] = round(time.perf_counter() - begun, 1)
                most = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
                rows.append(row | {"gpu_gb": most and round(most, 1)})
                print(*rows[-1].values(), flush=True)
                store.write_json(asked.output, about(asked.prompts, device) | {"rows": rows})
        finally:  # nothing else reads results of a model that is gone
            shutil.rmtree(plan.directory(), ignore_errors=True)


def about(n_prompts: int, device: str) -> dict[str, object]:
    """What was measured, where and with what."""
    name = torch.cuda.get_device_name() if device == "cuda" else device
    date = datetime.now(UTC).date().isoformat()
    return {"n_prompts": n_prompts, "device": name, "date": date, "versions": versions()}


if __name__ == "__main__":
    main()
