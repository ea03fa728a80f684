#!/usr/bin/env bash
# Resolve every extra together for Python 3.11 and write requirements.lock.
set -euo pipefail
cd "$(dirname "$0")/.."
links=()
for folder in ${PIP_FIND_LINKS:-}; do links+=(--find-links "$folder"); done
{
  echo "# Made by \`make lock\`: every package of every extra, pinned. Installed with --no-deps (scripts/setup.sh)."
  .venv/bin/uv pip compile --quiet --python-version 3.11 --no-annotate --no-header --no-emit-index-url \
    --no-emit-find-links ${links[@]+"${links[@]}"} --extra dev pyproject.toml <(echo uv) <(echo hatchling) <(echo editables) |
    sed -E 's/^(torch==[0-9.]+)\+.*/\1/' | grep -v '^deepseek-ops'
} >requirements.lock.new
mv requirements.lock.new requirements.lock
