#!/bin/sh
#SBATCH --job-name=embedrag
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --signal=TERM@120
#SBATCH --requeue
# sbatch configs/launch/slurm.sh --finetune_type lora --train_dataset train.jsonl --output_dir /shared/run …
# Two minutes before the end of the time SLURM sends SIGTERM: the state is saved, and a requeued job goes on.
MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node 8 --rdzv_id "$SLURM_JOB_ID" \
    --rdzv_backend c10d --rdzv_endpoint "$MASTER:29500" train.py --resume auto --save_steps 200 "$@"
