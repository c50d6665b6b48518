#!/usr/bin/env bash
# What MUSIC is for, in about 5 minutes on a laptop: 2 CPU cores, no GPU, no key, offline once installed, 8 GB of memory.
#
#     bash recipes/quickstart.sh [--dry-run] [FOLDER, default quickstart]
#     SEED=4 bash recipes/quickstart.sh seed4    # another seed of the reward models
#
# Two reward models see the same number of pairs, in the same number of steps. baseline sees preference pairs alone, whose
# sides differ in the last reply. music sees the same pairs half as often, and as many pairs of two conversations that an
# LLM has simulated, once plainly and once with a contrast in every reply. Both are then shown conversations that neither has
# seen, and copies of them in which one reply is another conversation's. How often does the intact one score higher, and does
# it depend on how far back the reply is?
#
# Most of the simulated pairs were made before, by the lines in tiny-data/README.md; a few are made now. SmolLM2-135M plays
# user, assistant and judge. Its first 6 of 30 layers are the backbone of the reward models, which LoRA trains.
# tiny-data/README.md says what was tried on the way, and what none of this can show.
# Stopped at any point, the same line goes on from the last finished stage; finished LLM calls are never made again.
# --dry-run walks all stages with a handful of rows: it shows that the script works. DRY_LLM and DRY_MODEL are the simulator
# and the backbone to do it with.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
[ -x "$root/.venv/bin/music" ] && PATH="$root/.venv/bin:$PATH"
if ! command -v music >/dev/null; then
    bash "$here/install.sh"
    PATH="$root/.venv/bin:$PATH"
fi
dry=
[ "${1:-}" = --dry-run ] && { dry=yes; shift; }
out=${1:-quickstart}
data=$here/tiny-data
mkdir -p "$out"
# --- sizes ------------------------------------------------------------------------------------------------------------
llm=local/smollm2
contexts=3 # continued now
prompts=3  # with 4 conversations of each, to pick the best from
train=(--model local/smollm2 --layers 6 --lora 16 --batch 8 --steps 20 --lr 2e-3 --max-length 1024 --seed "${SEED:-0}")
talks=$data/talks.jsonl
if [ -n "$dry" ]; then
    llm=${DRY_LLM:-$llm} contexts=2 prompts=2
    train=(--model "${DRY_MODEL:-local/smollm2}" --layers 1 --lora 4 --batch 2 --steps 2 --lr 1e-4 --max-length 1024)
    head -n 4 "$talks" >"$out/talks.jsonl"
    talks=$out/talks.jsonl
fi
small=(--assistant "$llm" --assistant-tokens 48 --user-tokens 32 --temperature 0.4 --cache "$out/calls.sqlite")
# ----------------------------------------------------------------------------------------------------------------------
start=$SECONDS

say() { # say TEXT: with the time since the start
    printf '== %d:%02d %s\n' $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)) "$1" >&2
}

stage() { # stage FILE WHAT: whether FILE is still to be made, saying what it is
    if [ -e "$out/$1" ]; then echo "== $1: there already" >&2; return 1; fi
    say "$1: $2"
}

# --- simulate: pairs whose earlier replies differ, too ------------------------------------------------------------------
stage contexts.jsonl "$contexts messages of users, to be continued" &&
    music sample "$data/prompts.jsonl" --emit prompts -n "$contexts" --seed 1 -o "$out/contexts.jsonl"
stage branches.jsonl "each continued twice, plainly and with a contrast, by a chat model that plays user and assistant" &&
    music simulate "$out/contexts.jsonl" --turns 2 --contrast all "${small[@]}" -o "$out/branches.jsonl"
stage live.jsonl "the branches joined into preferences" &&
    music pair "$out/branches.jsonl" -o "$out/live.jsonl"
stage pairs.html "a page of these pairs, side by side" &&
    music show "$out/live.jsonl" --html "$out/pairs.html"

# --- train: the same number of pairs and steps for both -----------------------------------------------------------------
preferences=("$data/pairs.jsonl" "$data/more-pairs.jsonl")
stage baseline/music.json "a reward model on preference pairs alone" &&
    music train "${preferences[@]}" "${train[@]}" --out "$out/baseline"
stage music/music.json "a reward model on preference pairs and simulated ones, half and half" &&
    music train "${preferences[@]}" "$data/music.jsonl" "$out/live.jsonl" "${train[@]}" --out "$out/music"

# --- use: Best-of-N, judged ---------------------------------------------------------------------------------------------
stage candidates.jsonl "4 conversations from each of $prompts prompts" &&
    music sample "$data/prompts.jsonl" --emit prompts --exclude "$out/contexts.jsonl" -n "$prompts" --seed 1 |
    music simulate --turns 2 --contrast none --samples 4 "${small[@]}" -o "$out/candidates.jsonl"
stage scored.jsonl "the candidates scored by both models" &&
    music score "$out/candidates.jsonl" --model "$out/music" --no-cache |
    music score --model "$out/baseline" --no-cache -o "$out/scored.jsonl"
stage judged.jsonl "the best of 4 by each model, judged in both orders" &&
    music pair "$out/scored.jsonl" --best-of 4 --a music --b baseline |
    music judge --judge "$llm" --cache "$out/calls.sqlite" -o "$out/judged.jsonl"

# --- measure: which model reads the turns before the last ---------------------------------------------------------------
stage test.jsonl "conversations that neither has seen, and copies with one reply exchanged" &&
    music sample "$talks" --emit corruptions --kind reply -o "$out/test.jsonl"
stage sensitivity.scored.jsonl "both sides scored by both models" &&
    music score "$out/test.jsonl" --model "$out/music" --no-cache |
    music score --model "$out/baseline" --no-cache -o "$out/sensitivity.scored.jsonl"
say "how often the intact conversation scores higher"
music bench sensitivity "$out/sensitivity.scored.jsonl" -o "$out/sensitivity.jsonl" \
    --plot "$out/sensitivity.png" --html "$out/sensitivity.html"
say "done"
cat >&2 <<END

The row to look at is "before the last turn": a model that reads the last reply alone scores both sides equal there.
One run of each model is one draw: another SEED gives other figures. $data/README.md
says what was tried, and what this cannot show.

In $out: sensitivity.png, the picture. sensitivity.html, the page. pairs.html, simulated pairs side by side.
    branches.jsonl, live.jsonl: conversations and pairs. baseline/, music/: reward models. judged.jsonl: Best-of-4.

What next?
  first:            source $root/.venv/bin/activate
  your own data:    music sample YOUR-DATA --describe
  your own server:  music simulate $out/contexts.jsonl --assistant hosted_vllm/NAME --api-base http://HOST:8000/v1 -o branches.jsonl
  your own GPU:     music train YOUR-PAIRS --model google/gemma-2-2b-it --lora 16 --lr 1e-4 --out rm
END
