#!/bin/bash
# Trains under Slurm on two machines of eight GPUs: one worker on each, with all of its GPUs.
#
#   sbatch recipes/cluster/slurm.sh
#   sbatch --nodes=4 recipes/cluster/slurm.sh python -m tfmp.recipes.resnet --workdir=/shared/run
#
# Words behind the file are the program. Its --workdir has to be on a file system that all machines
# share, and an environment with tfmp active where you type this. A worker listens at port 8888.
#
#SBATCH --job-name=tfmp
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=tfmp-%j.log

[ $# -gt 0 ] || set -- python -m tfmp.recipes.resnet --workdir="runs/slurm-$SLURM_JOB_ID"

# Workers end by themselves once one is lost: Slurm is not to kill them before they have.
srun --label --kill-on-bad-exit=0 --wait=120 "$@" --resume
status=$?

# 75: stopped before the time limit, preempted, or a worker was lost; above 128: one was killed.
# srun tells the highest status of all, so that the others' 75 hides a crash of one: not for ever.
if [ $status -eq 75 ] || [ $status -gt 128 ]; then
    if [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
        echo "Status $status: to be started again."
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit $status
