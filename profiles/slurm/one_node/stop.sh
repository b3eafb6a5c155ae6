#!/usr/bin/env bash
# End the daemons that start.sh started.
set -euo pipefail
for file in /run/slurmd.pid /run/slurmctld.pid /run/munge/munged.pid; do
  [ ! -f "$file" ] || kill "$(cat "$file")"
done
