#!/usr/bin/env bash
# Test and time the Triton kernels on this machine's GPU, in at most ten minutes.
#
#   benchmarks/kernels_gpu.sh [PYTHON]
#
# PYTHON is the interpreter of an environment with hybridize, its dev extra, and a torch with CUDA.
# Results go to benchmarks/results/kernels-<device>.json and .png.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python}

export TRITON_INTERPRET=0
# Compilation takes most of the tests' time, so run them in several processes.
timeout 300 "$python" -m pytest -q -n 8 -p no:cacheprovider tests/kernels/test_triton_*.py
timeout 290 "$python" benchmarks/kernels_gpu.py
