#!/usr/bin/env bash
# Precompute over the GPUs of several nodes: one Ray head, one Ray worker a further node, one driver on the head.
#   sbatch configs/slurm.sh PHOTOS --steps 8 --world nvidia/Cosmos-Predict2-2B-Video2World --cache /shared/latents
# Cost and expectation: one world model a GPU (4.4 GB of weights from HF_HOME, which all nodes must see); images a second
# grow with the GPUs. Inputs, --cache and this virtual environment lie on a file system that all nodes share.
#
# Safety: Ray listens on the nodes' network, where anyone with the token runs code as you, and traffic is not encrypted.
# So: token auth always, the token in a 0600 file that only you can read, and a private network between the nodes.
# theworld refuses a cluster that asks for no token. The same sbatch goes on where a cancelled or failed one stopped.
#SBATCH --job-name=theworld
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
# (the driver gets two minutes to say what remains; exit code 75 means: submit again)
set -euo pipefail
umask 077
: "${SLURM_JOB_ID:?run this with sbatch}"

export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_TOKEN_PATH="$HOME/.theworld-ray-$SLURM_JOB_ID"
python -c "import secrets; print(secrets.token_hex(32), end='')" > "$RAY_AUTH_TOKEN_PATH"
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(srun --nodes=1 --ntasks=1 -w "${nodes[0]}" hostname -I | awk '{print $1}')  # the private network's address
port=$((20000 + SLURM_JOB_ID % 10000))
gpus=${SLURM_GPUS_ON_NODE:-0}
common=(--disable-usage-stats --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$gpus" --block)

# each Ray in a folder of its own that only you can read, as the default one is not; mkdir refuses one laid out by others
export folder=/tmp/theworld-$SLURM_JOB_ID
start() { srun --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" -w "$1" --export=ALL bash -c \
    'mkdir -m 700 "$folder"; trap "rm -rf $folder" EXIT; ray start "$@"' ray "${@:2}" & }
start "${nodes[0]}" --head --node-ip-address="$head" --port="$port" --include-dashboard=false \
    --temp-dir="$folder" "${common[@]}"
for ((attempt = 0; attempt < 60; attempt++)); do
    srun --overlap --nodes=1 --ntasks=1 -w "${nodes[0]}" ray health-check --address "$head:$port" 2>/dev/null && break
    sleep 2
done
for node in "${nodes[@]:1}"; do
    start "$node" --address="$head:$port" "${common[@]}"
done

# on the head, since a driver has to be on a node of its cluster; SLURM's signal, below, is handed on to it
srun --overlap --nodes=1 --ntasks=1 -w "${nodes[0]}" --export=ALL \
    theworld precompute "$@" --address "$head:$port" --events "theworld-$SLURM_JOB_ID.jsonl" &
driver=$!
trap 'kill -TERM $driver 2>/dev/null || true' TERM
code=0
wait $driver || code=$?
while kill -0 $driver 2>/dev/null; do wait $driver || code=$?; done  # a signal ends the first wait early
kill $(jobs -p) 2>/dev/null || true
exit $code
