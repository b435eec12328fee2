#!/bin/bash
#SBATCH --job-name=plsh-sweep --requeue --open-mode=append
# bash slurm/sweep.sh [sweeps/FILE.yaml] [KEY=VALUE ... --retry failed]     (or sbatch slurm/sweep.sh ...)
#
# Expands the sweep, submits itself as an array of the cells that are missing, and returns. As an element of that array
# it runs one cell under srun: it stops at a sample boundary when Slurm warns it, exits 75 and is requeued; what it
# computed is in the results folder. slurm/README.md explains the use, slurm/site.example.sh the settings.
set -euo pipefail

refuse() {
    echo "$1" >&2
    exit 2
}

absolute() { case $1 in /*) echo "$1" ;; *) echo "$called/$1" ;; esac; }

# An element of the array is told by arguments: FLAGS may keep the environment from it (--export=NONE).
if [ "${1:-}" = --rows ]; then
    PLSH_ROWS=$2 PLSH_FIRST=$3 PLSH_ROOT=$4 SITE=$5
    shift 5
fi

# sbatch runs a copy of this script, and the project is where the original lies. A shell in an interactive job runs the
# original, and what its job was started with says nothing about the sweep.
original=$0 batch=
if [ ! -f "$(dirname "$0")/../harness/run.py" ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    batch=1
    original=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*/slurm/sweep\.sh\).*|\1|p' | head -n 1)
fi
ROOT=${PLSH_ROOT:-$(cd "$(dirname "$original")/.." && pwd)}
[ -f "$ROOT/harness/run.py" ] || refuse "There is no project in $ROOT. Submit the slurm/sweep.sh of your clone itself."
called=$PWD
cd "$ROOT"

CAP=16 MAX_REQUEUES=20 MAX_ARRAY=100000 PYTHON=.venv/bin/python FLAGS=(--gres=gpu:1) LAUNCH=()
site=$ROOT/slurm/site.sh
[ -r "$site" ] || site=/dev/null
SITE=$(absolute "${SITE:-$site}")
[ -r "$SITE" ] || refuse "SITE names $SITE, which cannot be read."
# shellcheck disable=SC1090
. "$SITE"
RESULTS=$(absolute "${RESULTS:-$ROOT/results}")

submit() {
    local sweep=sweeps/tiny.yaml missing busy rows count left
    case ${1:-} in '' | -* | *=*) ;; *) sweep=$1 && shift ;; esac
    [ ! -f "$(absolute "$sweep")" ] || sweep=$(absolute "$sweep")
    missing=$("${LAUNCH[@]}" "$PYTHON" -m harness.sweep "$sweep" --results "$RESULTS" --missing "$@")
    busy=$(queued)
    # without the numbers, which options may change
    rows=$(awk '{ row = $0; sub(/^[0-9]+ /, "", row) } FILENAME == ARGV[1] { busy[row]; next } !(row in busy)' \
        <(echo "$busy") <(echo "$missing"))
    count=$(grep -c . <<< "$rows" || true)
    left=$(($(grep -c . <<< "$missing" || true) - count))
    if [ "$left" -gt 0 ]; then
        echo "Not submitted again: $left cells that wait or run in earlier arrays."
    elif [ "$count" = 0 ]; then
        echo "Nothing to submit: the cells of $sweep in $RESULTS are done, or failed (--retry failed runs those again)."
    fi
    [ "$count" -gt 0 ] || return 0
    local limit first=0 after=() name logs
    limit=$(scontrol show config | sed -n 's/^MaxArraySize *= *\([0-9]*\).*/\1/p')
    limit=$((MAX_ARRAY < ${limit:-1001} ? MAX_ARRAY : ${limit:-1001}))
    [ "$limit" -ge 1 ] || refuse "There can be no array: Slurm's MaxArraySize, or MAX_ARRAY in $SITE, is $limit."
    inherit
    name=$(basename "$sweep" .yaml)-$(date +%Y%m%dT%H%M%S)-$$
    name=${name// /_}
    logs=$RESULTS/sweeps/$name
    mkdir -p "$RESULTS/sweeps"
    mkdir "$logs"
    echo "$rows" > "$logs/rows"
    while [ "$first" -lt "$count" ]; do # longer sweeps than Slurm's arrays: one after the other
        local size=$((count - first < limit ? count - first : limit)) id
        if ! id=$(sbatch --parsable \
            --array="0-$((size - 1))%$CAP" --signal=USR1@120 --output="$logs/%A_%a.log" --export=ALL \
            "${inherited[@]}" "${FLAGS[@]}" "${after[@]}" --job-name="$name" slurm/sweep.sh \
            --rows "$logs/rows" "$first" "$ROOT" "$SITE"); then
            echo "Slurm refused $size cells, for the reason above; $first of $count were submitted. If that is too" \
                "many jobs at once, set MAX_ARRAY in the site file, and submit the same again when there is room."
            [ "$first" -gt 0 ] || rm -r "$logs"
            return 1
        fi
        id=${id%%;*} # a federation's name may follow
        echo "Submitted $size of $count cells as array job $id, at most $CAP at once: ${inherited[*]} ${FLAGS[*]}"
        echo "$id $first $size" >> "$logs/arrays"
        after=(--dependency="afterany:$id")
        first=$((first + size))
    done
    echo "Logs: $logs"
    echo "Look: $PYTHON -m harness.sweep $sweep$(printf ' %q' --results "$RESULTS" --status "$@")"
    echo "Cancel: scancel --name=$name"
}

# The rows that earlier arrays with these results have yet to do, by their elements that wait or run. Other clusters
# give the same numbers to other jobs; the name of an array is that of its folder.
queued() {
    local arrays elements
    elements=$(squeue -h -r -o '%F %K %j')
    for arrays in "$RESULTS"/sweeps/*/arrays; do
        [ -f "$arrays" ] || continue
        awk -v name="$(basename "${arrays%/*}")" 'FILENAME == ARGV[1] { if ($3 == name) waits[$1, $2]; next }
            FILENAME == ARGV[2] { for (i = 0; i < $3; i++) if (($1, i) in waits) wanted[$2 + i + 1]; next }
            FNR in wanted' <(echo "$elements") "$arrays" "${arrays%/*}/rows"
    done
}

# What was said to the first sbatch holds for the array too, unless the site file says otherwise. Time and QOS may be
# the defaults of its partition and account, and are not for those that the site file names.
inherit() {
    inherited=()
    local job='' pairs='Partition:partition Account:account QOS:qos TimeLimit:time' pair value
    case " ${FLAGS[*]}" in *' -p'* | *' --part'* | *' -A'* | *' --acc'*) pairs=${pairs% QOS*} ;; esac
    [ -z "$batch" ] || job=$(scontrol show job -o "$SLURM_JOB_ID")
    for pair in $pairs; do
        value=$(sed -n "s/.* ${pair%%:*}=\([^ ]*\).*/\1/p" <<< "$job")
        case $value in '' | '(null)' | UNLIMITED) ;; *) inherited+=("--${pair##*:}=$value") ;; esac
    done
    # the rest of this job's environment would reach the cells and contradict their own flags
    for pair in $(compgen -e SLURM_); do
        [ "$pair" = SLURM_CONF ] || unset "$pair"
    done
}

cell() {
    # the warning reaches Python through srun; bash runs a trap when the command in front has ended, and keeps its code
    trap ':' TERM USR1 USR2
    local number=$((PLSH_FIRST + SLURM_ARRAY_TASK_ID)) out written row code=0
    row=$(sed -n "$((number + 1))p" "$PLSH_ROWS")
    row=${row#* } # its number in the sweep stands first
    echo "harness.run $row"
    if [ "${SLURM_RESTART_COUNT:-0}" -gt "$MAX_REQUEUES" ]; then
        echo "Requeued $SLURM_RESTART_COUNT times, more than MAX_REQUEUES=$MAX_REQUEUES: not again."
        return 1
    fi
    eval "local overrides=($row)" # rows are quoted for the shell
    unset SLURM_EXPORT_ENV # what --export keeps from the job must not keep the job's own environment from its step
    out=$(mktemp)
    # one process, whatever FLAGS says of tasks, with all cores of the job, which srun does not take over by itself
    srun --nodes=1 --ntasks=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} --kill-on-bad-exit=0 \
        "${LAUNCH[@]}" "$PYTHON" -m harness.run "${overrides[@]}" > "$out" || code=$?
    cat "$out"
    written=$(tail -n 1 "$out" | sed -n 's/.*"rows_written": \([0-9]*\).*/\1/p')
    rm -f "$out"
    case $code in # stopped by a signal: between samples, or while it still loaded (USR1, TERM)
        75 | 138 | 143) again "${written:-0}" "${PLSH_ROWS%/*}/fruitless-$number" ;;
    esac
    return "$code"
}

# Requeue this cell, unless it was cancelled or gets nowhere. Given: how many samples it has computed since it was
# started, and a file with a line for each time in a row that it was stopped without any.
again() {
    local job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID # the last element's number alone means the whole array
    case $(scontrol show job -o "$job") in *' JobState=RUNNING '*) ;; *) return 0 ;; esac
    if [ "$1" -gt 0 ]; then
        rm -f "$2"
    else
        echo "${SLURM_RESTART_COUNT:-0}" >> "$2"
        if [ "$(wc -l < "$2")" -ge 3 ]; then
            echo "Stopped three times in a row before a single sample was done: not requeued. Give the job more time."
            return 1
        fi
    fi
    scontrol requeue "$job"
}

if [ -n "${PLSH_ROWS:-}" ]; then
    cell
elif [ -n "$batch" ] && [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    refuse "Give sbatch no --array: the script submits the array of the missing cells itself."
else
    submit "$@"
fi
