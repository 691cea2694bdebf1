# The stages as a graph, the same on a laptop and on a cluster. `make book` runs it; by hand:
#   snakemake --cores 2 --config params_file=params/quick.yml model=gpt2
# A run is repeated when its fingerprint (parameters, notebook, library modules) is another, or when
# a run that it depends on was repeated.

import sys

from seqcirc_utils import workflow as _flow

_plan = _flow.read_plan(
    config.get("params_file", "params/laptop.yml"), str(config.get("model", "") or "")
)
_jobs = _plan.jobs()


rule all:
    input:
        [str(path) for job in _jobs for path in (job.notebook, job.record)],
    default_target: True


for _job in _jobs:

    rule:
        name:
            f"{_job.stage}_{_job.task or 'all'}"
        input:
            [str(path) for path in _job.inputs],
        output:
            notebook=str(_job.notebook),
            record=str(_job.record),
        log:
            str(_job.notebook.with_suffix(".log")),
        params:
            fingerprint=_job.fingerprint,
            python=sys.executable,
            stage=_job.stage,
            task=["--task", _job.task] if _job.task else [],
            file=str(_plan.file),
            model=_plan.model,
        # What works through all tasks has the machine to itself; the built models are too small for that.
        threads: 1 if _job.task or not _job.inputs else workflow.cores or 1
        message:
            f"{_job.stage}, {_job.task or 'all tasks'} (progress in {_job.notebook.with_suffix('.log')})"
        shell:
            "OMP_NUM_THREADS={threads} {params.python:q} -m seqcirc_utils.workflow stage"
            " {params.stage} {params.task} --params {params.file:q} --model {params.model:q}"
            " --output {output.notebook:q} 2> {log:q}"
            " || {{ grep '^error: ' {log:q} >&2 || tail -n 5 {log:q} >&2; exit 1; }}"
