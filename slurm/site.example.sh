# What a cluster wants, in one place: copy to slurm/site.sh (git ignores it) and change it. Every line is optional.
# FLAGS goes to sbatch for the array of cells, in place of --gres=gpu:1; one cell takes one GPU.
FLAGS=(--partition=gpu --account=my-account --time=04:00:00 --gres=gpu:1 --cpus-per-task=8 --mem=64G)

# How many cells may run at once and wait in one array (where a QOS allows few jobs, a little less than that), and how
# often one may be requeued after a time-out or a preemption.
CAP=16
MAX_ARRAY=1000
MAX_REQUEUES=20

# Commands before each cell, and the interpreter. For nodes without a network:
#   export HF_HOME=/scratch/me/hf HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 WANDB_MODE=offline
# module load cuda
PYTHON=.venv/bin/python

# A container: what stands before the interpreter.
# LAUNCH=(apptainer exec --nv /images/harness.sif)
