#!/usr/bin/env bash
# MUSIC as published (arXiv 2512.24693): data, both reward models, Best-of-N on HH and UltraInteract, RewardBench.
#
#     bash recipes/paper.sh [--dry-run] [FOLDER, default paper]
#
# Needs: 8 GPUs of 80 GB, GEMINI_API_KEY, a Hugging Face login that may read google/gemma-2-9b-it, about 400 GB of disk.
# --dry-run walks every stage on a CPU with the embedded models and a handful of rows of tiny-data, in minutes: it shows
# that the script works, up to the hardware, and nothing about the method. DRY_LLM and DRY_MODEL name other models for it.
#
# Stopped at any point, the same line goes on; finished calls are not paid for twice. SIMULATOR=... and JUDGE=... take any
# other model of litellm's; the paper's, Gemini 1.5 Pro, can no longer be had from Google. It did not think before it
# replied, so the one in its place is told not to: REASONING=low or another effort of --reasoning, REASONING= for none of
# them. MAX_COST is the most that one command may spend, in dollars.
#
# What it costs is an estimate; nothing of it has been run, and the paper discloses neither hardware nor bill.
# - Simulating: `music simulate SEEDS --turns 5 --dry-run` on 400 contexts of HH helpful gives 19 calls, 26,600 tokens in
#   and 5,800 out a context (replies at two thirds of their limit): 760,000 calls, 1,060 M in, 234 M out for 40,000. At the
#   1.25 and 5 dollars a million that Gemini 1.5 Pro cost, 2,500 dollars; by litellm's prices 900 with gemini-2.5-flash
#   without thoughts. With 64 calls in flight that take 3 seconds each: 10 hours.
# - Candidates: 2,000 prompts x 8 x 3 turns, 80,000 calls, 50 M in and 22 M out: 70 dollars with it, an hour.
# - Judging: at most 2,000 x 3 contests in both orders, 12,000 calls of 3,400 tokens in and 340 out: 20 dollars.
# - Training, each of the two: 2,500 x 64 pairs of some 900 tokens (assumed) x 9.2e9 weights x 8 FLOP (6, and at most 2
#   for recomputing) = 1.1e19; at 40% (assumed) of the 989 TFLOP/s of an H100's bf16, on 8 of them: 1 hour. Scoring 16,000
#   conversations and RewardBench twice: half an hour on one. Some 20 GPU hours in all: 60 dollars at 3 an hour.
#
# `music train` keeps the activations that memory holds and computes the others again. Should memory not suffice all the
# same, add --activation-checkpointing to `train` below: the run goes on from its last state, at most 250 steps back.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
[ -x "$root/.venv/bin/music" ] && PATH="$root/.venv/bin:$PATH"
command -v music >/dev/null || { echo "paper.sh: music is not installed; bash recipes/install.sh does it" >&2; exit 2; }
dry=
[ "${1:-}" = --dry-run ] && { dry=yes; shift; }
out=${1:-paper}
mkdir -p "$out"

# --- the paper's numbers; "open": what it does not say, and what we take ---------------------------------------------
preferences=skywork             # paper: Skywork-Reward-Preference-80K, 73k pairs kept; pinned at v0.2
seeds=40000                     # open; the paper has about 31k pairs, after the bad ones were dropped
simulator=${SIMULATOR:-gemini/gemini-2.5-flash} # paper: Gemini 1.5 Pro; plays user and assistant
judge=${JUDGE:-gemini/gemini-2.5-flash}         # paper: Gemini 1.5 Pro
reasoning=${REASONING-none}     # ours: thoughts would fill the limits of the replies
most=${MAX_COST:-1500}          # ours: a guard, well above what the dearest command is reckoned to cost
simulate=(--turns 5             # paper
          --contrast all)       # open: which turns are contrasted
texts=(--temperature 0.7 --top-p 0.95 --assistant-tokens 512 --user-tokens 256 --seed 0) # open; of all that is simulated
model=google/gemma-2-9b-it      # paper
train=(--batch 64               # paper
       --steps 2500             # paper: "about"; one pass over D and D_MUSIC is 1,625
       --lr 2e-6                # paper
       --max-length 2048        # paper
       --schedule linear --warmup 0.03 --seed 0 # open
       --save-every 250 --accelerate-config "$here/accelerate/8gpu-fsdp.yaml")
prompts=1000                    # paper: first prompts of each set
sets=(hh ultrainteract)         # paper
candidates=(--turns 3 --samples 8 --contrast none) # paper: conversations of 3 turns, pools nested up to 8
sizes=2,4,8                     # paper
judging=()                      # open: what a judge may write, and how
rewardbench=rewardbench         # paper
# -------------------------------------------------------------------------------------------------------------------
if [ -n "$dry" ]; then
    preferences=$here/tiny-data/pairs.jsonl seeds=4 prompts=2 sizes=2
    simulator=${DRY_LLM:-local/smollm2} judge=${DRY_LLM:-local/smollm2} model=${DRY_MODEL:-local/smollm2}
    sets=("$here/tiny-data/prompts.jsonl") rewardbench=$here/tiny-data/heldout.jsonl
    reasoning=
    simulate=(--turns 2 --contrast all) candidates=(--turns 1 --samples 2 --contrast none)
    texts=(--assistant-tokens 24 --user-tokens 24) judging=(--max-tokens 48)
    train=(--batch 2 --steps 2 --lr 1e-4 --lora 4 --max-length 256)
fi

thoughts=()
[ -n "$reasoning" ] && thoughts=(--reasoning "$reasoning")

paid() { # paid FILE COMMAND...: a command that calls LLMs and writes FILE; some records may fail, but MAX_COST must do
    "${@:2}" "${thoughts[@]}" --max-cost "$most" --cache "$out/calls.sqlite" -o "$out/$1" \
        2>&1 | tee "$out/paid.log" >&2 || [ $? -eq 1 ]
    grep -q "stopped by --max-cost" "$out/paid.log" || return 0
    rm -f "$out/$1"
    echo "paper.sh: MAX_COST=$most does not suffice for $1; with more the same line goes on" >&2
    exit 1
}

todo() { # todo FILE WHAT: whether FILE is still to be made
    [ ! -e "$out/$1" ] && echo "== $1: $2" >&2
}

if todo pairs.jsonl "D, the preference pairs"; then
    music sample "$preferences" --emit pairs --on-error skip --rejects "$out/pairs.rejects.jsonl" -o "$out/pairs.jsonl" ||
        [ $? -eq 1 ] # some rows were skipped, and counted
fi
if todo seeds.jsonl "contexts, prefixes of D"; then
    music sample "$out/pairs.jsonl" --emit seeds -n "$seeds" --seed 0 -o "$out/seeds.jsonl"
fi
if todo branches.jsonl "both branches"; then
    paid branches.jsonl music simulate "$out/seeds.jsonl" --assistant "$simulator" --user "$simulator" \
        "${simulate[@]}" "${texts[@]}" --rejects "$out/branches.rejects.jsonl"
fi
if todo music.jsonl "D_MUSIC, the branches as preferences"; then
    music pair "$out/branches.jsonl" -o "$out/music.jsonl"
fi
if todo baseline/music.json "the baseline reward model, on D alone"; then
    music train "$out/pairs.jsonl" --model "$model" "${train[@]}" --out "$out/baseline"
fi
if todo music/music.json "the MUSIC reward model, on D and D_MUSIC"; then
    music train "$out/pairs.jsonl" "$out/music.jsonl" --model "$model" "${train[@]}" --out "$out/music"
fi

for set in "${sets[@]}"; do
    name=$(basename "$set" .jsonl)
    if todo "$name.prompts.jsonl" "first prompts"; then
        music sample "$set" --emit prompts -n "$prompts" --seed 0 --on-error skip -o "$out/$name.prompts.jsonl" ||
            [ $? -eq 1 ]
    fi
    if todo "$name.candidates.jsonl" "conversations from each prompt"; then
        paid "$name.candidates.jsonl" music simulate "$out/$name.prompts.jsonl" --assistant "$simulator" \
            --user "$simulator" "${candidates[@]}" "${texts[@]}" --rejects "$out/$name.rejects.jsonl"
    fi
    if todo "$name.scored-baseline.jsonl" "scored by the baseline"; then
        music score "$out/$name.candidates.jsonl" --model "$out/baseline" -o "$out/$name.scored-baseline.jsonl"
    fi
    if todo "$name.scored.jsonl" "and by MUSIC"; then
        music score "$out/$name.scored-baseline.jsonl" --model "$out/music" -o "$out/$name.scored.jsonl"
    fi
    if todo "$name.contests.jsonl" "Best-of-N contests between their picks"; then
        music pair "$out/$name.scored.jsonl" --best-of "$sizes" --a music --b baseline -o "$out/$name.contests.jsonl"
    fi
    if todo "$name.judged.jsonl" "judged in both orders"; then
        paid "$name.judged.jsonl" music judge "$out/$name.contests.jsonl" --judge "$judge" "${judging[@]}" \
            --rejects "$out/$name.judge.rejects.jsonl"
    fi
    music bench winrate "$out/$name.judged.jsonl" -o "$out/$name.winrate.jsonl"
done

if todo rewardbench-baseline.jsonl "RewardBench, scored by the baseline"; then
    music sample "$rewardbench" --emit pairs -o "$out/rewardbench.jsonl"
    music score "$out/rewardbench.jsonl" --model "$out/baseline" -o "$out/rewardbench-baseline.jsonl"
fi
if todo rewardbench-scored.jsonl "and by MUSIC"; then
    music score "$out/rewardbench-baseline.jsonl" --model "$out/music" -o "$out/rewardbench-scored.jsonl"
fi
# The paper: Skywork only 96.9 73.0 90.9 83.1, average 86.0; Skywork + MUSIC 96.4 72.4 90.8 87.0, average 86.6.
bench=rewardbench
[ -n "$dry" ] && bench=agreement # tiny-data has none of RewardBench's subsets
music bench "$bench" "$out/rewardbench-scored.jsonl" -o "$out/$bench.jsonl"
