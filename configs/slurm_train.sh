#!/usr/bin/env bash
# Train over the GPUs of several nodes: one torchrun on each node, one process for each GPU (DDP).
#   sbatch configs/slurm_train.sh RUN STORE --questions QUESTIONS.jsonl --lm google/gemma-2-2b --batch-size 64
# RUN is the run's folder (theworld train --out); the rest is what `theworld train` takes. If RUN.partial exists, the
# training resumes there, with any number of nodes and GPUs. Edit the lines marked EDIT, or give the same options to
# sbatch. RUN, the store, the weights (HF_HOME) and this environment lie on a file system that all nodes share.
#
# When SLURM's signal comes, or a process dies, every process ends. torchrun ends with 1 in both cases, whatever its
# processes ended with. So this script looks at RUN.partial: if this attempt left a new checkpoint, the job is requeued
# and resumes there, at most THEWORLD_MAX_REQUEUE (20) times. If it left none, the job ends with torchrun's exit code,
# unless SLURM's signal came in its first ten minutes, while the training loaded.
#
# Safety: torchrun's port, and those of NCCL or gloo, are open on every network of the nodes, without a password and
# without encryption. Train on nodes that only you and people you trust can reach.
#SBATCH --job-name=theworld-train
#SBATCH --nodes=2                    # EDIT
#SBATCH --gpus-per-node=8            # EDIT; without GPUs: 0, and one process for each node
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

say() { printf '%s slurm_train.sh: %s\n' "$(date +%T)" "$*" >&2; }
command -v torchrun > /dev/null || { say "no torchrun on PATH: activate its environment above, where EDIT stands"; exit 2; }
case ${1:--} in
    -*) say "name the run's folder first: sbatch configs/slurm_train.sh RUN STORE --questions QUESTIONS.jsonl"; exit 2 ;;
esac
run=${1%/}
[ ! -e "$run" ] || { say "$run exists: it is complete. Name another run, or remove it"; exit 2; }
shift
resume=()
[ ! -d "$run.partial" ] || resume=(--resume)
checkpoint() { stat -c '%i %y' "$run.partial/checkpoint.safetensors" 2> /dev/null || echo none; }
before=$(checkpoint)

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# by the cluster's own names; where they lead to a network that is not the nodes' own, set THEWORLD_HEAD_IP
head=${THEWORLD_HEAD_IP:-$(getent ahostsv4 "${nodes[0]}" | awk '{print $1; exit}')}
processes=${SLURM_GPUS_ON_NODE:-0}
((processes)) || processes=1
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK > processes ? SLURM_CPUS_PER_TASK / processes : 1))
export folder=/tmp/theworld-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}

signal_training() {
    trap '' TERM
    say "SLURM's signal: the training ends after the update in hand"
    # SIGUSR1 reaches the trainings alone: SIGTERM to the step would let SLURM kill it 30 s later. Again and again, as
    # a training hears nothing before Python has begun
    while sleep 1 && kill -0 $$; do scancel --quiet --signal=USR1 "$SLURM_JOB_ID.0" || true; sleep 4; done 2> /dev/null &
    signalled=$!
}
signalled=
trap signal_training TERM

run_torchrun() {  # on a node
    local code=0
    trap '' USR1  # for the trainings, which listen to it even so
    trap : TERM   # of scancel: this shell stays until torchrun and the trainings have ended
    mkdir -m 700 "$folder" || return 1  # for temporary files; refuses one that somebody else laid out
    TMPDIR=$folder torchrun --node-rank="$SLURM_NODEID" "$@" || code=$?
    rm -rf "$folder"
    return $code
}
export -f run_torchrun
# --wait: how long the other nodes have when one has ended, before SLURM ends them
srun --nodes="${#nodes[@]}" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --wait=120 \
    bash -c 'run_torchrun "$@"' torchrun --nnodes="${#nodes[@]}" --nproc-per-node="$processes" \
    --master-addr="$head" --master-port=$((20000 + 2 * (SLURM_JOB_ID % 5000))) \
    -m theworld.pipeline.cli train "$@" --out "$run" "${resume[@]}" &
step=$!
code=0
wait $step || code=$?
while kill -0 $step 2> /dev/null; do code=0; wait $step || code=$?; done  # a signal ends the first wait early
trap '' TERM  # a requeue sends it
[ -z "$signalled" ] || kill $signalled
say "torchrun ended with $code"

((code)) || exit 0
if [ -d "$run" ]; then
    say "$run is complete all the same"
    exit 0
fi
is_running() { [ "$(squeue --noheader --job="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; }
attempts=${SLURM_RESTART_COUNT:-0}
if ! is_running; then  # cancelled by its owner, or a node failed, and SLURM itself requeues it
    say "SLURM ends this job. The same sbatch resumes the training"
elif [ "$(checkpoint)" = "$before" ] && { [ -z "$signalled" ] || ((SECONDS > 600)); }; then
    say "not requeued: this attempt left no new checkpoint"
elif ((attempts >= ${THEWORLD_MAX_REQUEUE:-20})); then
    say "not requeued: it was requeued $attempts times. Submit it again if it should go on"
else
    scontrol requeue "$SLURM_JOB_ID" && say "requeued: it resumes from the last checkpoint"
fi
exit $code
