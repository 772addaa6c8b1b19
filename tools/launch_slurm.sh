#!/usr/bin/env bash
# Training on SLURM: one process a node drives all of its GPUs, or one process a GPU.
#
#   sbatch --nodes=2 --gpus-per-node=8 tools/launch_slurm.sh \
#       plum train --config=configs/plum.py:size=13b --config.base=/data/base --config.data.folder=/data/partonomy \
#       --workdir=/data/runs/13b
#
# Options of sbatch override the #SBATCH lines below. --ntasks-per-node=8 makes it one process a GPU. Submit from the
# checkout whose .venv has plum_jax[cuda], or activate another environment first. Before the time is up SLURM sends
# SIGTERM: the run saves, the job is put back into the queue, and goes on from there.
# --dry-run in the place of the command prints what every process would be given.
#SBATCH --job-name=plum
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=plum-%j.log
set -euo pipefail

if [[ $# -eq 0 || $1 == --help || $1 == -h ]]; then
  sed -n '2,12s/^# \{0,1\}//p' "$0"
  exit $(($# == 0 ? 2 : 0))
fi
for name in SLURM_JOB_ID SLURM_JOB_NODELIST SLURM_NTASKS SLURM_JOB_NUM_NODES; do
  if [[ -z ${!name:-} ]]; then
    echo "launch_slurm.sh: error: $name is not set; start this script with sbatch" >&2
    exit 2
  fi
done

root=${SLURM_SUBMIT_DIR:-$PWD}
if [[ -f $root/.venv/bin/activate && -z ${VIRTUAL_ENV:-} ]]; then
  # shellcheck disable=SC1091 # made by make
  source "$root/.venv/bin/activate"
fi

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
JAX_COORDINATOR_ADDRESS=${nodes%%$'\n'*}:$((61440 + SLURM_JOB_ID % 4096))
PLUM_TASKS_PER_NODE=$((SLURM_NTASKS / SLURM_JOB_NUM_NODES))
PLUM_GPUS_PER_NODE=${SLURM_GPUS_ON_NODE:-0}
export JAX_COORDINATOR_ADDRESS PLUM_TASKS_PER_NODE PLUM_GPUS_PER_NODE

# jax would give a process of SLURM a single GPU, that of its local rank; here the GPUs of a node are split evenly.
# shellcheck disable=SC2016 # for the shell of every process
task='
export JAX_NUM_PROCESSES=$SLURM_NTASKS JAX_PROCESS_ID=$SLURM_PROCID
share=$((PLUM_GPUS_PER_NODE / PLUM_TASKS_PER_NODE))
if ((share > 0)); then
  JAX_LOCAL_DEVICE_IDS=$(seq -s , $((SLURM_LOCALID * share)) $((SLURM_LOCALID * share + share - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi
if [[ $1 == --dry-run ]]; then
  echo "process $JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS, GPUs ${JAX_LOCAL_DEVICE_IDS:-none}"
  exit
fi
exec "$@"'

command=("$@")
if [[ $1 != --dry-run ]]; then
  command=("$root/tools/run_stoppable.sh" "$@")
fi
code=0
srun --kill-on-bad-exit=1 bash -c "$task" plum "${command[@]}" || code=$?
if ((code == 75)); then
  echo "Stopped and saved: putting job $SLURM_JOB_ID back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
