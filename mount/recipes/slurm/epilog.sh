#!/bin/bash
# Slurm epilog: lets go of what prolog.sh has pinned for a job, and ends what it still fetches for it.
#
# What other jobs of this node have pinned stays pinned: each pins for itself. It waits a few seconds at most, and
# always succeeds: an epilog that fails drains its node, and a pin that stays ends by itself in time.
set -fu
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/refgenfs/bin
exec </dev/null >/dev/null 2>&1

# The same settings, and the same file for others, as prolog.sh.
mountpoint=/genomes
refgenfs=refgenfs
patience=5
marks=/run/refgenfs-slurm
say() { logger -t refgenfs-slurm -- "job $SLURM_JOB_ID: $*"; }
settings=${REFGENFS_SLURM:-/etc/refgenfs/slurm}
# shellcheck source=/dev/null
if [[ -r $settings ]]; then . "$settings"; fi

if [[ ! -e $marks/$SLURM_JOB_ID ]]; then exit 0; fi  # most jobs pin nothing
if answer=$(timeout -k 2 $((patience + 10)) "$refgenfs" unpin --for "slurm-$SLURM_JOB_ID" \
    --mountpoint "$mountpoint" 2>&1 >/dev/null); then
    say "unpinned"
else
    say "pins stay until their time is over: ${answer:-the daemon did not answer}"
fi
rm -f "$marks/$SLURM_JOB_ID"
exit 0
