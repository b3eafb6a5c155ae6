#!/usr/bin/env bash
# Run the tiny sandbox through a one-node Slurm: profiles/slurm/drill.sh [TARGET...] (default: all). See docs/drills/slurm.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
one_node=$PWD/profiles/slurm/one_node
python workflow/scripts/sandbox.py --out build/slurm
"$one_node/start.sh"
trap '"$one_node/stop.sh"' EXIT
cd build/slurm
snakemake --workflow-profile profiles/slurm -- "${@:-all}"
# OVER_SUB: OK may share the node, NO has it alone.
squeue --states=all --sort=i --format="%.4i %.28k %.9T %.19S %.19e %.4C %.8h"
