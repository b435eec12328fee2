#!/bin/bash
#SBATCH --job-name=plsh-sweep --requeue --open-mode=append
# sbatch slurm/sweep.sh [sweeps/FILE.yaml] [KEY=VALUE ... --retry failed]     (or bash slurm/sweep.sh ... on a login node)
#
# Without an array index this expands the sweep, submits itself as an array of the cells that are missing, and returns.
# With one it runs one cell under srun. A cell stops at a sample boundary when Slurm warns it, exits 75 and is requeued;
# what it computed is in the results folder. slurm/README.md explains the use, slurm/site.example.sh the settings.
set -euo pipefail

# sbatch runs a copy of this script, and the project is where the original lies. A shell in an interactive job runs the
# original, and what its job was started with says nothing about the sweep.
original=$0 batch=
if [ ! -f "$(dirname "$0")/../harness/run.py" ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    batch=1
    original=$(scontrol show job -o "$SLURM_JOB_ID" | sed -n 's/.* Command=\([^ ]*\).*/\1/p')
fi
ROOT=${PLSH_ROOT:-$(cd "$(dirname "$original")/.." && pwd)}
called=$PWD
cd "$ROOT"

RESULTS=${RESULTS:-results} CAP=16 MAX_REQUEUES=20 PYTHON=.venv/bin/python FLAGS=(--gres=gpu:1) LAUNCH=()
SITE=${SITE:-slurm/site.sh}
# shellcheck disable=SC1090
[ ! -f "$SITE" ] || . "$SITE"

submit() {
    local sweep=${1:-sweeps/tiny.yaml}
    shift || true
    [ -f "$sweep" ] || sweep=$called/$sweep
    local logs
    logs=$RESULTS/sweeps/$(basename "$sweep" .yaml)-$(date +%Y%m%dT%H%M%S)-$$
    mkdir -p "$logs"
    logs=$(cd "$logs" && pwd)
    "${LAUNCH[@]}" "$PYTHON" -m harness.sweep "$sweep" --results "$RESULTS" --missing "$@" > "$logs/missing"
    queued > "$logs/queued"
    # without the numbers, which options may change
    awk '{ row = $0; sub(/^[0-9]+ /, "", row) } FILENAME == ARGV[1] { queued[row]; next } !(row in queued)' \
        "$logs/queued" "$logs/missing" > "$logs/rows"
    local count limit first=0 after=() left
    count=$(wc -l < "$logs/rows")
    left=$(($(wc -l < "$logs/missing") - count))
    if [ "$left" -gt 0 ]; then
        echo "Not submitted again: $left cells that wait or run in earlier arrays."
    elif [ "$count" = 0 ]; then
        echo "Nothing is missing: all cells of $sweep are done in $RESULTS."
    fi
    [ "$count" -gt 0 ] || return 0
    inherit
    limit=$(scontrol show config | sed -n 's/^MaxArraySize *= *\([0-9]*\).*/\1/p')
    limit=${limit:-1001}
    while [ "$first" -lt "$count" ]; do # longer sweeps than Slurm's arrays: one after the other
        local size=$((count - first < limit - 1 ? count - first : limit - 1)) id
        id=$(PLSH_ROOT=$ROOT PLSH_ROWS=$logs/rows PLSH_FIRST=$first RESULTS=$RESULTS SITE=$SITE sbatch --parsable \
            --array="0-$((size - 1))%$CAP" --signal=USR1@120 --output="$logs/%a.log" --export=ALL \
            "${inherited[@]}" "${FLAGS[@]}" "${after[@]}" slurm/sweep.sh)
        id=${id%%;*} # a federation's name may follow
        echo "Submitted $size of $count cells as array job $id, at most $CAP at once. Logs: $logs"
        echo "$id $first $size" >> "$logs/arrays"
        after=(--dependency="afterany:$id")
        first=$((first + size))
    done
    echo "Look: $PYTHON -m harness.sweep $sweep --results $RESULTS --status"
}

# The rows that earlier arrays with these results have yet to do, by their elements that wait or run.
queued() {
    local arrays elements
    elements=$(squeue -h -r -o '%F %K')
    for arrays in "$RESULTS"/sweeps/*/arrays; do
        [ -f "$arrays" ] || continue
        awk 'FILENAME == ARGV[1] { waits[$1, $2]; next }
            FILENAME == ARGV[2] { for (i = 0; i < $3; i++) if (($1, i) in waits) wanted[$2 + i + 1]; next }
            FNR in wanted' <(echo "$elements") "$arrays" "${arrays%/*}/rows"
    done
}

# What was said to the first sbatch holds for the array too, unless the site file says otherwise.
inherit() {
    inherited=()
    local job='' pair value
    [ -z "$batch" ] || job=$(scontrol show job -o "$SLURM_JOB_ID")
    for pair in Partition:partition Account:account QOS:qos TimeLimit:time; do
        value=$(sed -n "s/.* ${pair%%:*}=\([^ ]*\).*/\1/p" <<< "$job")
        case $value in '' | '(null)' | UNLIMITED) ;; *) inherited+=("--${pair##*:}=$value") ;; esac
    done
    # the rest of this job's environment would reach the cells and contradict their own flags
    for pair in $(compgen -e SLURM_); do
        [ "$pair" = SLURM_CONF ] || unset "$pair"
    done
}

cell() {
    local number=$((PLSH_FIRST + SLURM_ARRAY_TASK_ID)) out written row
    local name=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
    row=$(sed -n "$((number + 1))p" "$PLSH_ROWS")
    row=${row#* } # its number in the sweep stands first
    if [ "${SLURM_RESTART_COUNT:-0}" -gt "$MAX_REQUEUES" ]; then
        echo "Requeued $SLURM_RESTART_COUNT times, more than MAX_REQUEUES=$MAX_REQUEUES: not again. Row: $row"
        return 1
    fi
    eval "local overrides=($row)" # rows are quoted for the shell
    out=$(mktemp)
    # the warning reaches Python through srun; bash runs a trap when the command in front has ended, and keeps its code
    trap ':' TERM USR1 USR2
    local code=0
    srun --kill-on-bad-exit=0 "${LAUNCH[@]}" "$PYTHON" -m harness.run "${overrides[@]}" > "$out" || code=$?
    cat "$out"
    written=$(tail -n 1 "$out" | sed -n 's/.*"rows_written": \([0-9]*\).*/\1/p')
    rm -f "$out"
    if [ "$code" = 75 ]; then
        if [ "${written:-0}" -gt 0 ]; then
            scontrol requeue "$name"
        else
            echo "Stopped before a single sample was done: not requeued. Give the job more time."
            return 1
        fi
    fi
    return "$code"
}

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then cell; else submit "$@"; fi
