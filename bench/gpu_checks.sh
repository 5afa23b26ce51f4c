#!/usr/bin/env bash
# Everything that needs a GPU, in one call on a GPU machine: build, GPU tests, benches. Results go to $OUT (default: a new folder).
# Wheels that the machine lacks may lie in .whl/ (they are installed without an index). Run from the root of the checkout.
set -uo pipefail
OUT=${OUT:-$(mktemp -d)}
site=${DSENGINE_SITE:-/tmp/site}
mkdir -p "$OUT" "$site"
export PYTHONUNBUFFERED=1 PYTHONPATH="$site:$site/dsengine-site"

if compgen -G ".whl/*.whl" >/dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" .whl/*.whl || exit 1
fi
DSENGINE_CUDA=1 python3 -m pip install -q --no-index --no-deps --no-build-isolation --upgrade --target "$site/dsengine-site" . || exit 1

{
  git rev-parse HEAD 2>/dev/null
  nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,memory.total --format=csv,noheader
  python3 -c "import torch, triton; print('torch', torch.__version__, 'triton', triton.__version__, 'cuda', torch.version.cuda)"
} | tee "$OUT/machine.txt"

python3 -P -m dsengine.cli doctor | tee "$OUT/doctor.txt"
python3 -P -m pytest -q -m "not learning and not kills" -k "gpu or cuda" tests 2>&1 | tee "$OUT/gpu_tests.txt"
python3 -P -m pytest -q bench --benchmark-enable --benchmark-json="$OUT/bench.json" -s 2>&1 | tee "$OUT/bench.txt"
