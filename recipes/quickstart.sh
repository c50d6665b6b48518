#!/usr/bin/env bash
# The whole way on a laptop: 2 CPU cores, no GPU, no key, offline once installed; about 10 minutes, 8 GB of memory.
#
#     bash recipes/quickstart.sh [FOLDER, default quickstart]
#
# What it shows is that every stage works and how they fit together. SmolLM2-135M plays user, assistant and judge, and a
# few dozen pairs train Gemma 3 270M: the numbers at the end are real, and far too small a sample to prove anything.
# Stopped at any point, the same line goes on from the last finished stage; finished LLM calls are never made again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
[ -x "$root/.venv/bin/music" ] && PATH="$root/.venv/bin:$PATH"
if ! command -v music >/dev/null; then
    echo "== installing into $root/.venv (once)" >&2
    bash "$here/install.sh"
    PATH="$root/.venv/bin:$PATH"
fi
out=${1:-quickstart}
data=$here/tiny-data
mkdir -p "$out"
start=$SECONDS

stage() { # stage FILE WHAT: whether FILE is still to be made, saying what it is
    if [ -e "$out/$1" ]; then echo "== $1: there already" >&2; return 1; fi
    printf '== %s: %s (%d:%02d)\n' "$1" "$2" $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)) >&2
}

small=(--assistant local/smollm2 --assistant-tokens 64 --user-tokens 40 --temperature 0.4 --cache "$out/calls.sqlite")

stage seeds.jsonl "contexts to continue: prefixes of preference pairs" &&
    music sample "$data/pairs.jsonl" "$data/seeds.jsonl" --emit seeds -n 24 --seed 1 -o "$out/seeds.jsonl"
stage branches.jsonl "both branches, by a chat model that plays user and assistant" &&
    music simulate "$out/seeds.jsonl" --turns 2 --contrast all "${small[@]}" -o "$out/branches.jsonl"
stage music.jsonl "the branches joined into preferences" &&
    music pair "$out/branches.jsonl" -o "$out/music.jsonl"
stage pairs.html "those pairs, side by side" &&
    music show "$out/music.jsonl" --html "$out/pairs.html"

train=(--model local/gemma3-270m --batch 8 --lora 16 --lr 2e-4 --max-length 1024 --eval "$data/heldout.jsonl")
stage baseline/music.json "a reward model on the preference pairs alone" &&
    music train "$data/pairs.jsonl" "${train[@]}" --epochs 2 --out "$out/baseline"
stage music/music.json "a reward model on the preference pairs and ours" &&
    music train "$data/pairs.jsonl" "$out/music.jsonl" "${train[@]}" --epochs 2 --out "$out/music"

stage heldout-baseline.jsonl "held-out pairs scored by baseline, turn by turn" &&
    music score "$data/heldout.jsonl" --model "$out/baseline" --per-turn -o "$out/heldout-baseline.jsonl"
stage heldout.jsonl "and by music" &&
    music score "$out/heldout-baseline.jsonl" --model "$out/music" --per-turn -o "$out/heldout.jsonl"
stage candidates.jsonl "4 conversations from each of 8 prompts" &&
    music sample "$data/prompts.jsonl" --emit prompts -n 8 |
    music simulate --turns 2 --contrast none --samples 4 "${small[@]}" -o "$out/candidates.jsonl"
stage scored-baseline.jsonl "the candidates scored by baseline" &&
    music score "$out/candidates.jsonl" --model "$out/baseline" -o "$out/scored-baseline.jsonl"
stage scored.jsonl "and by music" &&
    music score "$out/scored-baseline.jsonl" --model "$out/music" -o "$out/scored.jsonl"
stage judged.jsonl "Best-of-N contests between the two models' picks, judged in both orders" &&
    music pair "$out/scored.jsonl" --best-of 2,4 --a music --b baseline |
    music judge --judge local/smollm2 --cache "$out/calls.sqlite" -o "$out/judged.jsonl"

printf '== metrics (%d:%02d)\n' $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)) >&2
music bench agreement "$out/heldout.jsonl" -o "$out/agreement.jsonl"
music bench winrate "$out/judged.jsonl" -o "$out/winrate.jsonl"
cat >&2 <<END
== everything is in $out
   seeds.jsonl       contexts            branches.jsonl    simulated conversations
   music.jsonl       preference pairs    pairs.html        the same, to look at
   baseline/ music/  reward models       */log.jsonl       loss, accuracy, speed of each step
   heldout.jsonl     scored pairs        judged.jsonl      Best-of-N contests with verdicts
   agreement.jsonl   winrate.jsonl       the metrics above, for machines
   One score by hand:  music score $data/heldout.jsonl --model $out/music | head -n 1
END
