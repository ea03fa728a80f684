#!/usr/bin/env bash
# Create .venv and install exactly what requirements.lock pins, then this project in place.
#
# torch is the one package with several builds under one version. A local wheel folder (PIP_FIND_LINKS) wins; else the
# CPU build is taken from PyTorch's own index; else the package index's build with its CUDA libraries, as a last resort.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=${VENV:-.venv}

if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
  echo "setup: the lock is made for Python 3.11, but '$python' is $("$python" --version 2>&1 || echo missing);" \
    "install Python 3.11 or call: make setup PYTHON=/path/to/python3.11" >&2
  exit 1
fi
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$(sed -n 's/^uv==//p' requirements.lock)"

links=()
for folder in ${PIP_FIND_LINKS:-}; do links+=(--find-links "$folder"); done
install() { VIRTUAL_ENV=$PWD/$venv "$venv/bin/uv" pip install --quiet --no-deps ${links[@]+"${links[@]}"} "$@"; }

rest=$(mktemp)
trap 'rm -f "$rest"' EXIT
grep -v '^torch==' requirements.lock >"$rest"
torch=$(grep '^torch==' requirements.lock)
install -r "$rest"
if [ -n "$(for folder in ${PIP_FIND_LINKS:-}; do ls "$folder" 2>/dev/null; done | grep "^torch-${torch#torch==}" || true)" ]; then
  install "$torch"
elif [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
  install "$torch" # these builds carry no CUDA
elif ! install --torch-backend cpu "$torch"; then
  echo "setup: no CPU build of $torch could be had; taking the index's own build and what it needs (several GB)" >&2
  VIRTUAL_ENV=$PWD/$venv "$venv/bin/uv" pip install --quiet "$torch"
fi
install --no-build-isolation -e . # hatchling is in the lock: nothing is fetched outside it
# Imports dominate short jobs, and each of them would compile the packages again where writing bytecode is switched off.
"$venv/bin/python" -m compileall -q -j 0 -x "/(tests?|kubernetes)/" "$venv/lib" >/dev/null 2>&1 || true # some packages carry files of other Pythons
touch "$venv/.installed"
