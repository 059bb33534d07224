#!/usr/bin/env bash
# What waits for a GPU, in under 12 minutes: scoring a 3B shape in bfloat16 against lm-eval, a steering batch of 50 users
# against user by user, a LoRA step against the Trainer. Each line that begins with { is a result.
#
#     bash benchmarks/gpu.sh            # figures also in gpu-results.txt, or $OUT/gpu-results.txt
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
exec > >(tee "${OUT:-.}/gpu-results.txt") 2>&1
failed=0
run() {
    echo "== ${*:2} ($(date -u +%H:%M:%S))"
    timeout "$1" "$PYTHON" "${@:2}" 2>&1 | tail -n 12 || failed=1
}
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || exit 69
run 360 benchmarks/scoring.py --gpu --n 1000 --peer lm-eval --repeats 3
run 120 benchmarks/steering.py --gpu
run 180 benchmarks/adapters.py --gpu --items 32 --epochs 1
exit "$failed"
