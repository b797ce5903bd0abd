#!/bin/bash
# Slurm prolog: fetches what a job names in its comment onto this node, and pins it there while the job runs.
#
#   sbatch --comment=refgenfs:hg38/bwa_index,hg38/fasta.fai job.sh
#
# For the nodes, beside epilog.sh; slurm.conf in this folder names both. It waits a few seconds at most, and always
# succeeds: a prolog that fails drains its node, and a job that starts before all is here reads the rest through the
# mount. What is not here by then goes on being fetched, and is pinned when it is.
set -fu
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/refgenfs/bin
exec </dev/null >/dev/null 2>&1  # slurmd may wait for whoever has its pipes open

# Settings: /etc/refgenfs/slurm, in shell, may have others.
mountpoint=/genomes
refgenfs=refgenfs  # the program
patience=5         # seconds that a job's start may wait for its files; below BatchStartTimeout of slurm.conf
fetching=4h        # for how long what is not here then may still be fetched
lease=7d           # when pins end by themselves, where no epilog ends them: longer than the longest job
most=8             # keys of a job
marks=/run/refgenfs-slurm  # a file for each job that has pinned something
say() { logger -t refgenfs-slurm -- "job $SLURM_JOB_ID: $*"; }
settings=${REFGENFS_SLURM:-/etc/refgenfs/slurm}
# shellcheck source=/dev/null
if [[ -r $settings ]]; then . "$settings"; fi

# Anybody may write a comment: what is no key doesn't get any further.
keys=()
for word in ${SLURM_JOB_COMMENT:-}; do
    if [[ $word != refgenfs:* ]]; then continue; fi
    IFS=, read -ra named <<<"${word#refgenfs:}"
    for key in "${named[@]}"; do
        if [[ $key =~ ^[A-Za-z0-9][A-Za-z0-9._+-]*/[A-Za-z0-9][A-Za-z0-9._+:-]*$ ]]; then
            keys+=("$key")
        else
            say "passed over ${key@Q} in its comment: no KEY (genome/asset[.seek_key][:tag])"
        fi
    done
done
if ((${#keys[@]} > most)); then
    say "names ${#keys[@]} keys, and the first $most are fetched"
    keys=("${keys[@]:0:most}")
fi
if ((${#keys[@]} == 0)); then exit 0; fi

mkdir -p "$marks" && : >"$marks/$SLURM_JOB_ID"

# In a session of its own: slurmd ends what is left of a prolog's. The epilog ends it, through the daemon.
fetch() {
    local answer
    if answer=$(timeout -k 10 "$fetching" "$refgenfs" pull --pin --for "slurm-$SLURM_JOB_ID" --lease "$lease" \
        --mountpoint "$mountpoint" -- "${keys[@]}" 2>&1 >/dev/null); then
        say "${keys[*]}: all here and pinned after $SECONDS s"
    else
        say "${keys[*]}: not pinned after $SECONDS s: ${answer:-it took longer than $fetching}"
    fi
}
export SLURM_JOB_ID fetching refgenfs lease mountpoint
export -f fetch say
setsid bash -c 'keys=("$@"); fetch' fetch "${keys[@]}" &
timeout "$patience" tail --pid=$! -s 0.1 -f /dev/null || say "starts before all of ${keys[*]} is here"
exit 0
