#!/usr/bin/env bash
# Tests with one process per GPU, or with several on a CPU:
#   tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [options of test.py]
# On several machines run it on each, with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT in the environment.
set -euo pipefail

if [ "$#" -lt 3 ]; then
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
fi
config=$1
checkpoint=$2
processes=$3

export PYTHONPATH="$(dirname "$0")/..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}" --nproc-per-node "$processes" \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}" \
    "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "${@:4}"
