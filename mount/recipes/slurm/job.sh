#!/bin/bash
#SBATCH --job-name=align
#SBATCH --cpus-per-task=8
#SBATCH --comment=refgenfs:hg38/bwa_index
set -euo pipefail
bwa mem -t "$SLURM_CPUS_PER_TASK" /genomes/hg38/bwa_index/hg38.fa "$1" "$2" >"$3"
