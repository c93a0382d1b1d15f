#!/usr/bin/env bash
# The Triton kernels on this machine's GPU: correctness, then timings, within ten minutes.
#
#   benchmarks/kernels_gpu.sh [PYTHON]     an environment with hybridize, its dev extra, and CUDA
#
# Results go to benchmarks/results/kernels-<device>.json and .png.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python}

export TRITON_INTERPRET=0
# Most of the tests' time is compilation, which several processes share.
timeout 300 "$python" -m pytest -q -n 8 -p no:cacheprovider tests/kernels/test_triton_*.py
timeout 290 "$python" benchmarks/kernels_gpu.py
