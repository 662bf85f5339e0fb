#!/usr/bin/env bash
# Precompute over the GPUs of several nodes: one Ray head, one Ray process on each further node, and the driver here.
#   sbatch configs/slurm.sh PHOTOS --steps 8 --world nvidia/Cosmos-Predict2-2B-Video2World --cache /shared/latents
# An array of jobs, each with a part of the inputs and all of them with one store:
#   sbatch --array=1-8 --nodes=1 --output=theworld-%A_%a.log configs/slurm.sh PHOTOS --steps 8 --cache /shared/latents
# Edit the lines marked EDIT, or give the same options to sbatch. Inputs, --cache and this environment lie on a file
# system that all nodes share. Each GPU holds one world model (4.4 GB of weights from HF_HOME).
#
# When SLURM's signal comes, the driver commits what it has, exits with 75, and this script requeues the job: it goes
# on where it stopped. It is not requeued when three attempts in a row committed nothing, or after
# THEWORLD_MAX_REQUEUE (20) attempts.
#
# Safety: Ray listens on every network of the nodes. Who has the token runs code as you, and traffic is not encrypted.
# So each job makes a token of its own, in a 0600 file, and theworld refuses a cluster that asks for no token.
#SBATCH --job-name=theworld
#SBATCH --nodes=2                    # EDIT
#SBATCH --gpus-per-node=8            # EDIT; without GPUs: 0
#SBATCH --cpus-per-task=32           # EDIT
#SBATCH --time=12:00:00              # EDIT
##SBATCH --account=… --partition=…   # EDIT, and remove one #
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=theworld-%j.log
set -euo pipefail
: "${SLURM_JOB_ID:?run this with sbatch}"
# source /shared/venv/bin/activate   # EDIT, or submit from a shell in which `theworld` runs

say() { printf '%s slurm.sh: %s\n' "$(date +%T)" "$*" >&2; }
for tool in theworld ray python; do
    command -v "$tool" > /dev/null || { say "no $tool on PATH: activate its environment above, where EDIT stands"; exit 2; }
done

name=$SLURM_JOB_ID part=()
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    name=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    parts=${THEWORLD_PARTS:-$SLURM_ARRAY_TASK_MAX}  # of one task alone, submitted again: THEWORLD_PARTS=8 sbatch --array=3
    [ "$SLURM_ARRAY_TASK_MIN" -ge 1 ] || { say "number an array's tasks from 1: --array=1-$((SLURM_ARRAY_TASK_MAX + 1))"; exit 2; }
    if [ -z "${THEWORLD_PARTS:-}" ] && [ "$SLURM_ARRAY_TASK_COUNT" -ne "$SLURM_ARRAY_TASK_MAX" ]; then
        say "this array has $SLURM_ARRAY_TASK_COUNT tasks up to $SLURM_ARRAY_TASK_MAX: say THEWORLD_PARTS=N, as at first"
        exit 2
    fi
    part=(--part "$SLURM_ARRAY_TASK_ID/$parts")
fi
events=theworld-$name.jsonl
export folder=/tmp/theworld-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
secret=$(mktemp -d "$HOME/.theworld-XXXXXXXX")  # 0700
temporary=$(mktemp -d /tmp/theworld-XXXXXXXX)   # of the driver
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")

# `ray` deaf to SIGTERM, with all that it starts: scancel sends it to every process at once, and the workers are to end
# their batches and hand them to the driver, which hears it. And as if grpc were not installed, whose presence alone makes
# Ray open a port for clients
export ray_here="import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
sys.modules['grpc'] = None; from ray.scripts.scripts import main; main()"
below() {  # the processes below one
    local child
    for child in $(pgrep -P "$1"); do echo "$child"; below "$child"; done
}
head_ended() {  # nothing listens, thrice: another signal ends such a try too
    local try
    for try in 1 2 3; do timeout 5 bash -c ": <> /dev/tcp/$head/$port" 2> /dev/null && return 1; done
    return 0
}
run_ray() {  # on a node, until it is told to end. Ray gives its folder to everybody (0777), so it lies in one of 0700
    local cancelled='' code=0 ray all
    trap 'cancelled=1' TERM  # SLURM starts no step then that could say `end`, so this node ends with its head
    umask 077
    mkdir -m 700 "$folder" || return 1  # refuses one that somebody else laid out
    mkdir "$folder/tmp"
    TMPDIR=$folder/tmp python -c "$ray_here" start "$@" > "$folder/log" 2>&1 &
    ray=$!
    while kill -0 $ray 2> /dev/null; do
        if [ -e "$folder/end" ] || { [ "$cancelled" ] && head_ended; }; then
            mapfile -t all < <(echo $ray; below $ray)
            kill -KILL "${all[@]}" 2> /dev/null
            break
        fi
        sleep 0.5
    done
    wait $ray 2> /dev/null || code=$?
    [ "$cancelled" ] || [ -e "$folder/end" ] || return $code  # it died; its log stays for now
    for ((i = 0; i < 50; i++)); do kill -0 "${all[@]}" 2> /dev/null || break; sleep 0.1; done
    rm -rf "$folder"
}
end_ray() {  # on a node: without this, srun would call Ray killed, and success would read as failure
    touch "$folder/end" 2> /dev/null || return 0
    for ((i = 0; i < 60; i++)); do [ -d "$folder" ] || return 0; sleep 0.5; done
    rm -rf "$folder"
}
export -f below head_ended run_ray end_ray
is_running() { [ "$(squeue --noheader --job="$name" --format=%T)" = RUNNING ]; }
cleanup() {
    trap '' TERM
    trap - EXIT
    local node ends=()
    end_ray &  # on this node. Of a cancelled job SLURM starts no step any more: its other nodes end with this one
    ends+=($!)
    is_running || nodes=()
    for node in "${nodes[@]:1}"; do  # each by itself, as one of them may be dead
        timeout 60 srun --overlap --quiet --nodes=1 --ntasks=1 --cpus-per-task=1 -w "$node" \
            bash -c end_ray || say "$node may still have $folder" &
        ends+=($!)
    done
    wait "${ends[@]}" || true
    ((${#pids[@]})) && { kill "${pids[@]}" 2> /dev/null || true; wait "${pids[@]}" 2> /dev/null || true; }
    rm -rf "$secret" "$temporary"
}
fruitless() {  # how many attempts in a row, up to this one, planned and committed nothing
    python - "$events" << 'PY'
import json, os, sys
count = 0
for line in open(sys.argv[1], encoding="utf-8") if os.path.exists(sys.argv[1]) else ():
    event = json.loads(line)
    count = count + 1 if event["event"] == "plan" else 0 if event.get("written") else count
print(count)
PY
}
finish() {  # with an exit code; 75 says that there is more to do
    trap '' TERM
    if (($1 == 75)) && is_running; then  # and not cancelled by its owner
        local attempts=${SLURM_RESTART_COUNT:-0}
        if ((attempts >= ${THEWORLD_MAX_REQUEUE:-20})); then
            say "not requeued: it was requeued $attempts times. Submit it again if it should go on"
        elif (($(fruitless || echo 0) >= 3)); then
            say "not requeued: the last three attempts committed nothing (see $events)"
        else
            cleanup
            scontrol requeue "$name" && say "requeued"
        fi
    fi
    exit "$1"
}
pids=()
trap cleanup EXIT
trap 'say "signalled before the start"; finish 75' TERM

export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_TOKEN_PATH=$secret/token
(umask 077; python -c "import secrets; print(secrets.token_hex(32), end='')" > "$RAY_AUTH_TOKEN_PATH")
unset RAY_AUTH_TOKEN RAY_ADDRESS  # the first would win over the file

# by the cluster's own names; where they lead to a network that is not the nodes' own, set THEWORLD_HEAD_IP
export head=${THEWORLD_HEAD_IP:-$(getent ahostsv4 "${nodes[0]}" | awk '{print $1; exit}')}
export port=$((20000 + 2 * (SLURM_JOB_ID % 5000)))
common=(--disable-usage-stats --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}"
    --object-store-memory=$((256 << 20)) --block)  # for tasks' names and receipts; latents go to the disk
start() {
    srun --overlap --quiet --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" -w "$1" \
        bash -c 'run_ray "$@"' ray "${@:2}" &
    pids+=($!)
}
start "${nodes[0]}" --head --node-ip-address="$head" --port="$port" --include-dashboard=false \
    --temp-dir="$folder/r" "${common[@]}"
for ((i = 0; i < 60; i++)); do
    ray health-check --address "$head:$port" > /dev/null 2>&1 && break
    if ! kill -0 "${pids[0]}" 2> /dev/null || ((i == 59)); then
        say "the Ray head at $head:$port did not start:"
        tail -n 20 "$folder/log" >&2 || true
        exit 1
    fi
    sleep 2
done
for node in "${nodes[@]:1}"; do start "$node" --address="$head:$port" "${common[@]}"; done

# here, without srun: a driver has to be on a node of its cluster, and SLURM's signal has to reach Python itself
code=0
TMPDIR=$temporary theworld precompute "$@" "${part[@]}" --address "$head:$port" --nodes "${#nodes[@]}" --events "$events" &
driver=$!
trap 'kill -TERM $driver 2> /dev/null || true' TERM
wait $driver || code=$?
while kill -0 $driver 2> /dev/null; do code=0; wait $driver || code=$?; done  # a signal ends the first wait early
say "theworld precompute ended with $code"
((code != 143)) || code=75  # SIGTERM came before Python had begun to listen
finish $code
