#!/usr/bin/env bash
# Does MUSIC work? The paper's claim (arXiv 2512.24693) at a size that 2 CPU cores finish in about two hours.
#
#     bash recipes/laptop.sh [--dry-run] [FOLDER, default laptop]
#     ARMS="a b c swaps per-turn" RUNS=1 bash recipes/laptop.sh    # what is compared (see `arm` below), by how many seeds
#
# Needs: 2 cores, 16 GB of memory, 10 GB of disk, no GPU, no key. JOBS=1 needs half the memory and half as long again.
# Stopped at any point, the same line goes on. The stages are printed with the time they began; laptop/README.md says what a
# run took, on what, and what came out.
# --dry-run walks every stage with a handful of rows and two steps, in minutes: it shows that the script works. DRY_LLM and
# DRY_MODEL are the simulator and the backbone to do it with.
#
# Hypothesis, written before the first run. Three reward models get the same number of pairs and steps:
#     a  D, human preferences whose two sides differ in the last reply only
#     b  half D, half pairs in which a simulated conversation's last reply alone answers an altered instruction
#     c  half D, half MUSIC pairs: the same seeds and simulator, the same chosen branches, every simulated reply altered
# Of conversations that no training set has seen, in which one reply before the last is exchanged for one of like length from
# another conversation, c picks the intact one more often than a and than b, with 95% intervals that do not touch; and on
# held-out D it loses nothing to a, within the interval of the difference.
# What could be shown, reckoned before: with 80 conversations of some 1.6 such replies, right in 60 to 85%, and three seeds
# whose errors are nearly the conversations', an interval is about 8 points wide on either side, and a difference of 13
# points would be seen four times in five. (It came out otherwise: runs differ more than conversations do. What was added for
# that, 140 more conversations, 220 at once since, and two more seeds, RUNS=5, laptop/README.md tells.)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
[ -x "$root/.venv/bin/music" ] && PATH="$root/.venv/bin:$PATH"
command -v music >/dev/null || { echo "laptop.sh: music is not installed; bash recipes/install.sh does it" >&2; exit 2; }
dry=
[ "${1:-}" = --dry-run ] && { dry=yes; shift; }
out=${1:-laptop}
mkdir -p "$out/scored"

# --- data: beside the repository where it is there, else D from the hub and the others from where you put them ------
data=${DATA:-$root/../shared/data}
preferences=$data/hh_helpful/anthropic_helpful_0521.jsonl
conversations=${MTBENCH101:-$data/mtbench101/mtbench101.jsonl}  # github.com/mtbench101/mt-bench-101
trajectories=${MINT:-$data/mint}                                # github.com/xingyaoww/mint-bench
[ -e "$preferences" ] || preferences=hh-helpful
[ -n "$dry" ] || [ -e "$conversations" ] || [ -e "$out/test.jsonl" ] || {
    echo "laptop.sh: needs MT-Bench-101: get mtbench101.jsonl from github.com/mtbench101/mt-bench-101; then MTBENCH101=FILE" >&2
    exit 2
}
# --- sizes ------------------------------------------------------------------------------------------------------------
model=local/smollm2      # backbone; Gemma 3 270M takes as long
simulator=local/smollm2  # user and assistant
[ -n "$dry" ] && model=${DRY_MODEL:-$model} simulator=${DRY_LLM:-$simulator}
pairs=240                # each arm trains on, once
seeds=170                # contexts simulated: pairs / 2, and what will be dropped as faulty
turns=3                  # simulated a context, the first in answer to a person's message
heldout=200              # pairs of D
tested=220               # conversations of MT-Bench-101, each with every one of its replies exchanged
solved=30                # pairs of MINT, the shorter ones (a prompt of a thousand tokens, both sides share it)
runs=${RUNS:-3}          # seeds an arm: the head, and the order of the pairs
train=(--batch 12 --lr 3e-5 --max-length 1024)
small=(--assistant "$simulator" --assistant-tokens 48 --user-tokens 32 --temperature 0.4 --cache "$out/calls.sqlite")
arms=${ARMS:-a b c}
jobs=${JOBS:-2}          # at a time, sharing the cores: two on one core each do half as much again as one on two
if [ -n "$dry" ]; then
    preferences=$here/tiny-data/pairs.jsonl conversations=$here/tiny-data/seeds.jsonl trajectories=
    pairs=4 seeds=5 turns=1 heldout=4 tested=3 solved=2 runs=1
    train=(--batch 2 --lr 3e-5 --max-length 256 --lora 2)
    small=("${small[@]}" --assistant-tokens 24 --user-tokens 24 --retries 1)
fi
half=$((pairs / 2))
taught=self-taught # the set of prompts for models that follow instructions, or the one for small models
[ "$simulator" = local/smollm2 ] && taught=self-taught-small
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + jobs - 1) / jobs))}
# -------------------------------------------------------------------------------------------------------------------
start=$SECONDS

stage() { # stage FILE WHAT: whether FILE is still to be made
    [ -e "$out/$1" ] && return 1
    printf '== %s: %s (%d:%02d)\n' "$1" "$2" $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)) >&2
}

but() { # but COMMAND: also where some records failed, which it has counted
    "$@" || [ $? -eq 1 ]
}

running=0
set -m # a process group for each job, so that none outlives this script
trap 'for job in $(jobs -p); do kill -- "-$job" 2>/dev/null || true; done' EXIT

finish() { # finish COUNT: wait until no more than so many jobs are running; one that fails ends the run
    while ((running > $1)); do
        wait -n
        running=$((running - 1))
    done
}

simulated() { # simulated NAME SIMULATE-OPTIONS: $half pairs of branches of the same seeds
    stage "$1.branches.jsonl" "both branches, $turns turns" &&
        but music simulate "$out/seeds.jsonl" --turns "$turns" "${small[@]}" "${@:2}" --on-error skip \
            -o "$out/$1.branches.jsonl"
    stage "$1.all.jsonl" "as preferences" && music pair "$out/$1.branches.jsonl" -o "$out/$1.all.jsonl"
    stage "$1.jsonl" "$half of them" &&
        music sample "$out/$1.all.jsonl" --emit pairs -n "$half" --seed 1 -o "$out/$1.jsonl"
    return 0
}

# --- what is trained on, and what is measured on -----------------------------------------------------------------------
stage D.jsonl "preferences, of two turns and more" &&
    but music sample "$preferences" --emit pairs -n $((pairs + pairs / 10)) --seed 1 --max-tokens 160 --on-error skip \
        -o "$out/D.jsonl"
stage heldout.jsonl "preferences with other prompts" &&
    but music sample "$preferences" --emit pairs --exclude "$out/D.jsonl" -n "$heldout" --seed 1 --max-tokens 160 \
        --on-error skip -o "$out/heldout.jsonl"
stage D-all.jsonl "D of arm a" && music sample "$out/D.jsonl" --emit pairs -n "$pairs" --seed 2 -o "$out/D-all.jsonl"
stage D-half.jsonl "D of the other arms" &&
    music sample "$out/D-all.jsonl" --emit pairs -n "$half" --seed 3 -o "$out/D-half.jsonl"
stage seeds.jsonl "contexts of D, up to a person's message" &&
    music sample "$out/D.jsonl" --emit seeds --next assistant -n "$seeds" --seed 1 --max-tokens 110 -o "$out/seeds.jsonl"
stage test.jsonl "conversations with one reply exchanged" &&
    music sample "$conversations" --emit conversations -n "$tested" --seed 1 --max-tokens 200 |
    music sample - --emit corruptions --kind reply -o "$out/test.jsonl"
if [ -n "$trajectories" ] && [ -e "$trajectories" ]; then
    stage solved.jsonl "a solved and an unsolved trajectory of one task" &&
        music sample "$trajectories" --emit pairs --max-tokens 1700 -n "$solved" --seed 1 -o "$out/solved.jsonl"
fi

arm() { # arm NAME: the pairs of an arm in `files`, and options of its training in `more`
    files=("$out/D-half.jsonl") more=()
    case $1 in
    a) files=("$out/D-all.jsonl") ;;
    b) simulated last --contrast last; files+=("$out/last.jsonl") ;;
    c) simulated music --contrast all; files+=("$out/music.jsonl") ;;
    one-turn) # the contrast at one turn, as often near the end as far from it
        simulated one --contrast random:1; files+=("$out/one.jsonl") ;;
    middle) # the contrast at one turn between the first and the last: the error stays in the history
        simulated middle --contrast middle --turns $((turns < 3 ? 3 : turns)); files+=("$out/middle.jsonl") ;;
    self-taught) # c by a model that sees the plain reply when it alters an instruction (arXiv 2408.02666)
        simulated self-taught --contrast all --prompts "$taught"; files+=("$out/self-taught.jsonl") ;;
    review) # users that ask for what the last reply lacks
        simulated review --contrast all --user-turns review; files+=("$out/review.jsonl") ;;
    swaps | swaps-last) # no LLM: a reply to something else, at any turn or the last
        local turn=any; [ "$1" = swaps-last ] && turn=last
        stage "$1.jsonl" "replies of like length to something else" &&
            music sample "$out/D.jsonl" --emit contrasts --turn "$turn" -n "$half" --seed 1 -o "$out/$1.jsonl"
        files+=("$out/$1.jsonl") ;;
    per-turn) # c with the loss at every turn
        simulated music --contrast all; files+=("$out/music.jsonl"); more=(--per-turn) ;;
    margin) # c with a margin for every contrasted turn
        simulated music --contrast all
        stage D-margin.jsonl "D, which has none" && sed 's/}$/,"contrast":[]}/' "$out/D-half.jsonl" >"$out/D-margin.jsonl"
        files=("$out/D-margin.jsonl" "$out/music.jsonl"); more=(--margin-field contrast --margin-scale 0.3) ;;
    *) echo "laptop.sh: no arm $1" >&2; exit 2 ;;
    esac
}

trained() { # trained NAME SET...: a reward model of what `arm` said, and its scores of each set that there is
    stage "rm/$1/music.json" "a reward model on $(basename -a "${files[@]}" | paste -sd' ')" &&
        music train "${files[@]}" --model "$model" "${train[@]}" "${more[@]}" --seed "${1##*-}" --out "$out/rm/$1"
    for set in "${@:2}"; do
        [ -e "$out/$set.jsonl" ] && stage "scored/$set.$1.jsonl" "scored by $1" &&
            music score "$out/$set.jsonl" --model "$out/rm/$1" --as "$1" --no-cache -o "$out/scored/$set.$1.jsonl"
    done
    return 0
}

for name in $arms; do
    arm "$name"
    for ((run = 0; run < runs; run++)); do
        sets=(test heldout)
        [[ $run = 0 && $name = [abc] ]] && sets+=(solved) # long ones: by one run of the arms that the hypothesis is about
        finish $((jobs - 1))
        trained "$name-$run" "${sets[@]}" &
        running=$((running + 1))
    done
done
finish 0
result=${arms// /,}
python "$here/laptop/table.py" "$out" --arms $arms --runs "$runs" --figure "$out/$result.png" | tee "$out/$result.md"
