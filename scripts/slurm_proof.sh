#!/usr/bin/env bash
# Does a run on SLURM end in the same results as a run on this machine? Starts a cluster of one node,
# this machine, for as long as this takes; runs one parameters file both ways; compares the circuits and
# the tables byte for byte. What the run on this machine has done already is not done again.
#
#   scripts/slurm_proof.sh [params/default.yml]
#
# Needs SLURM and munge. As root on Debian it installs them; it changes no other setting of the system.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

params=${1:-params/default.yml}
[ -f "$params" ] || { echo "error: $params does not exist: give a parameters file." >&2; exit 2; }
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || { echo "error: no $python: run 'make setup' first." >&2; exit 2; }
PATH="$(dirname -- "$(command -v "$python")"):$PATH:/usr/sbin:/sbin"
export PATH PYTHONHASHSEED=0 TOKENIZERS_PARALLELISM=false

if ! command -v slurmctld slurmd sbatch munged >/dev/null; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "error: SLURM is not here: install slurm-wlm and munge (as root on Debian this does it)." >&2
    exit 2
  fi
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends slurm-wlm munge >/dev/null
fi

here=$(mktemp -d /tmp/slurm_proof.XXXXXX)
chmod 755 "$here"
daemons=()
failed() {
  echo "FAILED: $1" >&2
  tail -n 5 "$here"/*.log .snakemake/slurm_logs/*/*/*.log 2>/dev/null >&2 || true
  exit 1
}
stop() {
  scancel --user="$(id -un)" 2>/dev/null || true
  for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do
    kill "${daemons[i]}" 2>/dev/null && wait "${daemons[i]}" 2>/dev/null || true
  done
  rm -rf "$here"
}
trap stop EXIT
trap 'exit 130' INT TERM

# The cluster. No systemd, no cgroups and no database, so that it runs in a container as well.
dd if=/dev/urandom of="$here/munge.key" bs=128 count=1 status=none
chmod 400 "$here/munge.key"
munged --foreground --force --key-file="$here/munge.key" --socket="$here/munge.socket" \
  --pid-file="$here/munge.pid" --seed-file="$here/munge.seed" --log-file="$here/munge.log" \
  > "$here/munged.log" 2>&1 &
daemons+=($!)
node=$(hostname -s)
cpus=$(env --unset=OMP_NUM_THREADS nproc)
read -r ctld_port slurmd_port < <("$python" -c '
import socket
ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(port.getsockname()[1] for port in ports))')
memory=$(slurmd -C | sed -n 's/.*RealMemory=\([0-9]*\).*/\1/p')
cat > "$here/slurm.conf" <<CONF
ClusterName=proof
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$ctld_port
SlurmdPort=$slurmd_port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$here/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool
SlurmctldPidFile=$here/slurmctld.pid
SlurmdPidFile=$here/slurmd.pid
NodeName=$node NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory
PartitionName=proof Nodes=$node Default=YES MaxTime=INFINITE State=UP
CONF
mkdir "$here/state" "$here/spool" "$here/bin"
export SLURM_CONF=$here/slurm.conf
# On the node Snakemake's plugin starts srun without SLURM's variables: this one is still told where.
printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$SLURM_CONF" "$(command -v srun)" > "$here/bin/srun"
chmod +x "$here/bin/srun"
PATH=$here/bin:$PATH
for ((i = 0; i < 50; i++)); do [ -S "$here/munge.socket" ] && break || sleep 0.2; done
slurmctld -D > "$here/slurmctld.log" 2>&1 &
daemons+=($!)
slurmd -D -N "$node" > "$here/slurmd.log" 2>&1 &
daemons+=($!)
for ((i = 0; i < 60; i++)); do
  [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ] && break || sleep 1
done
[ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ] || failed 'the cluster did not start.'
echo "=== SLURM $(sinfo --version | cut -d' ' -f2): one node, $cpus CPUs, $memory MB."

# What belongs to this cluster and not to the workflow: no accounting database, one small node.
cp -r profiles/slurm "$here/site"
cat >> "$here/site/config.yaml" <<CONF
slurm-status-command: squeue
max-threads: $cpus
CONF

local=results/$(basename "${params%.*}")
remote=results/slurm_proof
rm -rf "$remote"
cp "$params" "$here/slurm_proof.yml" # results are named by the file
SECONDS=0
"$python" -m seqcirc_utils run \
  --params "$here/slurm_proof.yml" --profile "$here/site" || failed 'the run on SLURM did not end.'
echo "=== On SLURM: $SECONDS s, $(find "$remote" -name '*.run.json' | wc -l) jobs."
records() { find "$remote" -name '*.run.json' -exec sha256sum {} + | sort -k 2; } # dates may change
before=$(records)
"$python" -m seqcirc_utils run --params "$here/slurm_proof.yml"
again=$(diff <(echo "$before") <(records)) || failed "after the run on SLURM this machine ran again: $again"
SECONDS=0
"$python" -m seqcirc_utils run --params "$params"
echo "=== On this machine: $SECONDS s for what was not done before."

compared=0
differ=()
while read -r file; do
  compared=$((compared + 1))
  cmp -s "$local/$file" "$remote/$file" || differ+=("$file")
done < <(for where in "$local" "$remote"; do
  (cd "$where" && find . -name '*.csv' -o -name '*.npz' -o -name '*.circuit*.json')
done | sort -u)
[ "$compared" -gt 0 ] || failed "there are no tables and circuits in $local."
[ ${#differ[@]} = 0 ] || failed "of $compared files these differ: ${differ[*]}"
echo "PASSED: $compared circuits and tables of $local and $remote are the same byte for byte."
