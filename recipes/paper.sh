#!/usr/bin/env bash
# MUSIC as published (arXiv 2512.24693): data, both reward models, Best-of-N on HH and UltraInteract, RewardBench.
#
#     bash recipes/paper.sh [--dry-run] [FOLDER, default paper]
#
# Needs: 8 GPUs of 80 GB, GEMINI_API_KEY, a Hugging Face login that may read google/gemma-2-9b-it, about 400 GB of disk.
# --dry-run walks every stage on a CPU with the embedded models and a handful of rows of tiny-data, in minutes: it shows
# that the script works, up to the hardware, and nothing about the method.
#
# Stopped at any point, the same line goes on; finished calls are not paid for twice. Before the paid stages, ask what
# they would cost:  music simulate paper/seeds.jsonl --turns 5 --assistant gemini/gemini-1.5-pro --dry-run
# Neither this run's hours nor its dollars have been measured; the paper discloses no hardware.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dry=
[ "${1:-}" = --dry-run ] && { dry=yes; shift; }
out=${1:-paper}
mkdir -p "$out"

# --- the paper's numbers -------------------------------------------------------------------------------------------
preferences=skywork             # Skywork-Reward-Preference-80K; v0.2, which no longer overlaps RewardBench
seeds=40000                     # open in the paper; about 31k pairs should be left after the bad ones are dropped
simulator=gemini/gemini-1.5-pro # plays user and assistant
judge=gemini/gemini-1.5-pro
turns=5                         # simulated when pairs are made
contrast=all                    # which turns are contrasted: open in the paper; see README
model=google/gemma-2-9b-it
train=(--batch 64 --steps 2500 --lr 2e-6 --max-length 2048 --budget 8192 --activation-checkpointing --save-every 250
       --accelerate-config "$here/accelerate/8gpu-fsdp.yaml")
prompts=1000                    # first prompts from each of HH and UltraInteract
sets=(hh ultrainteract)
pool=8                          # conversations a prompt, for N = 2, 4, 8 nested
pool_turns=3
sizes=2,4,8
rewardbench=rewardbench
llm=()
# -------------------------------------------------------------------------------------------------------------------
if [ -n "$dry" ]; then
    preferences=$here/tiny-data/pairs.jsonl seeds=6 simulator=local/smollm2 judge=local/smollm2 turns=2 pool=2 pool_turns=1
    model=local/smollm2 prompts=3 sizes=2 sets=("$here/tiny-data/prompts.jsonl") rewardbench=$here/tiny-data/heldout.jsonl
    train=(--batch 4 --steps 2 --lr 1e-4 --lora 4 --max-length 512)
    llm=(--assistant-tokens 24 --user-tokens 24)
fi

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
if todo branches.jsonl "both branches of $turns turns"; then
    music simulate "$out/seeds.jsonl" --assistant "$simulator" --user "$simulator" --turns "$turns" \
        --contrast "$contrast" "${llm[@]}" --cache "$out/calls.sqlite" --rejects "$out/branches.rejects.jsonl" \
        -o "$out/branches.jsonl" || [ $? -eq 1 ]
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
    if todo "$name.candidates.jsonl" "$pool conversations of $pool_turns turns from each prompt"; then
        music simulate "$out/$name.prompts.jsonl" --assistant "$simulator" --user "$simulator" --turns "$pool_turns" \
            --contrast none --samples "$pool" "${llm[@]}" --cache "$out/calls.sqlite" \
            --rejects "$out/$name.rejects.jsonl" -o "$out/$name.candidates.jsonl" || [ $? -eq 1 ]
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
        music judge "$out/$name.contests.jsonl" --judge "$judge" --cache "$out/calls.sqlite" \
            --rejects "$out/$name.judge.rejects.jsonl" -o "$out/$name.judged.jsonl" || [ $? -eq 1 ]
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
