# The stages as a graph, the same on a laptop and on a cluster. `make book` runs it; by hand:
#   snakemake --workflow-profile profiles/local --config params_file=params/quick.yml model=gpt2
# A run is repeated when what it is made of (parameters, sources, those of the runs that it reads) is
# another; where only its page is, it reads its findings. A sweep's file gives one such graph per
# model and seed.

import sys

from seqcirc_utils import store as _store
from seqcirc_utils.workflow import costs as _costs
from seqcirc_utils.workflow import planning as _plan
from seqcirc_utils.workflow import snakemake as _snakemake
from seqcirc_utils.workflow import stages as _stages
from seqcirc_utils.workflow import surroundings as _surroundings

_plans = _plan.from_config(config, workflow.config_settings.config_args or [])
# The same paths on every machine: from the project's root, which is the working directory.
_jobs = {
    (str(job.record.parent.relative_to(_store.ROOT)), job.stage): job
    for plan in _plans
    for job in plan.jobs()
}


def _relative(path):
    return str(path.relative_to(_store.ROOT))


def _of(stage, fact):
    return lambda wildcards: fact(_jobs[wildcards.where, stage])


# What one job takes, for a scheduler that must know beforehand. At 32 prompts of the default model, on
# one core of two, patching took 5 minutes and discovery 9, and no stage more than 2.3 GB. A job that
# was stopped for asking too little is tried again with more (`retries` of the profile).
# `set-resources` in a profile takes the place of these.
_MINUTES = {"03_patching": 60, "04_circuit_discovery": 120}
_chains = _costs.chains()
# Where jobs go to a cluster nobody says how many; there, a job has those that it was given.
_CORES = workflow.resource_settings.cores or _surroundings.cores()


def _more(amount):
    return lambda wildcards, attempt: amount * attempt


rule all:
    input:
        [_relative(path) for job in _jobs.values() for path in (job.notebook, job.record)],
    default_target: True


for _stage in _stages.STAGES.values():

    rule:
        name:
            _stage.name
        input:
            # Dates mean nothing: the fingerprint holds those of all that is read.
            _of(_stage.name, lambda job: [ancient(_relative(path)) for path in job.inputs]),
        output:
            notebook=f"{{where}}/{_stage.name}.ipynb",
            record=f"{{where}}/{_stage.name}.run.json",
        log:
            f"{{where}}/{_stage.name}.log",
        params:
            fingerprint=_of(_stage.name, lambda job: job.fingerprint),
            arguments=_of(_stage.name, lambda job: job.arguments),
            python=sys.executable,
        # The longest chain of waiting work goes first: small stages fill the gaps that it leaves.
        priority: _chains[_stage.name]
        threads: _CORES if workflow.remote_exec else _stages.threads(_stage, _CORES)
        resources:
            mem_mb=_more(4000),
            runtime=_more(_MINUTES.get(_stage.name, 60)),
            # On one machine `make book` lets one job at a time have the GPU (by hand: --resources gpu=1):
            # two would fight for its memory. `set-resources` with `gpu: 0` lets them.
            gpu=_of(_stage.name, _snakemake.gpus),
        message:
            f"{_stage.name}, {{wildcards.where}} (progress in {{log}})"
        shell:
            "OMP_NUM_THREADS={threads} {params.python:q} -m seqcirc_utils stage"
            " {params.arguments} --output {output.notebook:q} 2> {log:q}"
            " || {{ grep '^error: ' {log:q} >&2 || tail -n 5 {log:q} >&2; exit 1; }}"
