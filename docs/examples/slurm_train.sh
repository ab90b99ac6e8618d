#!/usr/bin/env bash
#SBATCH --job-name=iconet-sr-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#
# Train on all GPUs of several nodes. Submit it from the root of the repository:
# sbatch docs/examples/slurm_train.sh --dataset_dir HR_FOLDER --output_dir runs/mine [options of configs/train.json]
# A job that is put back into the queue, or submitted again, goes on from its last whole epoch.
set -euo pipefail

# shellcheck source=/dev/null
source .venv/bin/activate
first_node="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
processes="${SLURM_GPUS_ON_NODE:-1}"
export OMP_NUM_THREADS="$(((${SLURM_CPUS_PER_TASK:-1} + processes - 1) / processes))"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not take it from sbatch

# One launcher for each node; it starts a process for each GPU.
srun torchrun \
    --nnodes="$SLURM_NNODES" \
    --nproc_per_node="$processes" \
    --rdzv_id="$SLURM_JOB_ID" \
    --rdzv_backend=c10d \
    --rdzv_endpoint="$first_node:29500" \
    -m monai.bundle run training \
    --config_file "['configs/train.json','configs/multi_gpu_train.json']" \
    --resume True "$@"
