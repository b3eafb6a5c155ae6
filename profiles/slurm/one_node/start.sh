#!/usr/bin/env bash
# A Slurm of one node on loopback, to try profiles/slurm for real; as root, in a container. Needs:
#   apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge
# To end it: profiles/slurm/one_node/stop.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
install -d /etc/slurm /var/spool/slurmctld /var/spool/slurmd
sed "s/HOSTNAME/$(hostname -s)/g; s/CPUS/$(getconf _NPROCESSORS_ONLN)/" "$here/slurm.conf" > /etc/slurm/slurm.conf
cp "$here/cgroup.conf" /etc/slurm/cgroup.conf
install -d -o munge -g munge -m 0755 /run/munge
setpriv --reuid=munge --regid=munge --init-groups /usr/sbin/munged
slurmctld -c # nothing of an earlier trial
sleep 1
slurmd
sleep 1
sinfo --format="%P %a %D %t %c"
