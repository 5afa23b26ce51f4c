#!/usr/bin/env bash
# Makes the environment where it is not there ($PEERS_VENV, default ~/.cache/dsengine/peers-venv), then compares. Arguments go to `python bench/peers`.
# Torch comes as constraints.txt has it: point pip at a CPU wheel (PIP_FIND_LINKS, or PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu).
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
venv=${PEERS_VENV:-$HOME/.cache/dsengine/peers-venv}
if [ ! -x "$venv/bin/python" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q -c "$root/constraints.txt" -r "$root/bench/peers/requirements.txt" -e "$root[bench]"
fi
exec "$venv/bin/python" "$root/bench/peers" "$@"
