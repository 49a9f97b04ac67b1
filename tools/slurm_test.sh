#!/usr/bin/env bash
# Tests on a Slurm cluster:
#   [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS=...] tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]
# GPUS=1 GPUS_PER_NODE=0 asks for no GPU.
set -euo pipefail

if [ "$#" -lt 4 ]; then
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
fi
partition=$1
job_name=$2
config=$3
checkpoint=$4
gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
read -r -a srun_args <<<"${SRUN_ARGS:-}"
resources=(--ntasks "$gpus" --cpus-per-task "${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1)
if [ "$gpus_per_node" -gt 0 ]; then
    resources+=(--gres "gpu:$gpus_per_node" --ntasks-per-node "$gpus_per_node")
fi

export PYTHONPATH="$(dirname "$0")/..${PYTHONPATH:+:$PYTHONPATH}"
exec srun -p "$partition" --job-name "$job_name" "${resources[@]}" ${srun_args[@]+"${srun_args[@]}"} \
    "${PYTHON:-python}" -u "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher slurm "${@:5}"
