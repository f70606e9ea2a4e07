#!/usr/bin/env bash
# Images a second, memory and MFU on one GPU within 10 minutes: ViT-B/16 and ResNet-50 at 224 pixels, bf16, compiled or
# not, EC against plain fine-tuning. Leaves one JSON:
#
#     recipes/benchmarks/gpu.sh gpu.json             # on a machine with a GPU
#     recipes/benchmarks/gpu.sh gpu.json --tiny      # a few steps of tiny networks on the CPU, to try the script
set -euo pipefail
output=${1:?usage: gpu.sh OUTPUT.json [--tiny]}
here=$(cd "$(dirname "$0")" && pwd)
exec timeout 600 python "$here/gpu.py" --output "$output" --seconds 540 "${@:2}"
