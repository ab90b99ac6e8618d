#!/usr/bin/env bash
#SBATCH --job-name=iconet-sr
#SBATCH --ntasks=8
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-task=1
#SBATCH --time=04:00:00
#
# Super-resolve a folder with as many processes as there are tasks, on one node or on many. Submit it from the root of
# the repository: sbatch docs/examples/slurm_inference.sh IN OUT [options of python -m bundle]
# For a CPU partition leave out --gpus-per-task. What a lost task left undone is done by submitting again.
set -euo pipefail

# shellcheck source=/dev/null
source .venv/bin/activate
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not take it from sbatch

# Slurm numbers the tasks; the command reads the names that torchrun gives. A task that fails must not end the others.
# shellcheck disable=SC2016  # the inner shell expands, once in each task
srun --kill-on-bad-exit=0 bash -c '
    export RANK="$SLURM_PROCID" WORLD_SIZE="$SLURM_NTASKS" LOCAL_RANK="$SLURM_LOCALID"
    exec python -m bundle "$@"
' bundle "$@"
