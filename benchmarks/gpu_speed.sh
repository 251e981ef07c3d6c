#!/usr/bin/env bash
# What a host with a GPU is asked for about speed, in minutes, what matters most first: inspections of DensePatch, the
# default, and of ResNet18Patch; the exact kernel density at 679,000 x 512 with FAISS's search on the GPU beside it;
# then the default as it is tuned, a smaller bank, and growth.
#
#   benchmarks/gpu_speed.sh OUT
#
# The machine needs bash, coreutils, and in Python torch for CUDA (with Triton), torchvision, faiss-gpu (with faiss-cpu
# the search on the GPU is left out), numpy, scipy, scikit-learn, opencv-python, pillow, pydantic, safetensors, kornia,
# matplotlib and rich. OUT receives a text file for each step, whose last line is its JSON object. A step takes at most
# STEP_SECONDS, 100 unless set, and one that fails or takes longer leaves the others, but what is tuned is the detector
# of the first. PLUMBLINE names another program than that on the path, for example PLUMBLINE='python3 -m cli.main';
# DEVICE tries it elsewhere.
set -uo pipefail
out=${1:?the folder for the results}
read -ra plumbline <<<"${PLUMBLINE:-plumbline}"
device=(--device "${DEVICE:-cuda}")
mkdir -p "$out"

step() {
  local name=$1 begun=$SECONDS status=0
  shift
  timeout --signal TERM "${STEP_SECONDS:-100}" "$@" >"$out/$name.txt" 2>"$out/$name.log" || status=$?
  echo "$name: status $status, $((SECONDS - begun)) s" | tee -a "$out/steps.txt"
  [ "$status" = 0 ] || tail -3 "$out/$name.log"
}

benchmark=("${plumbline[@]}" benchmark)
detector=("${device[@]}" --folder "$out/detector" --json)
kde=("${benchmark[@]}" kde "${device[@]}" --json --repeats 3)
step predict "${benchmark[@]}" predict "${detector[@]}" --batches 1 32
step predict_resnet18_patch "${benchmark[@]}" predict "${detector[@]}" --batches 1 32 \
  --encoder resnet18_patch --steps 20 --repeats 5
step kde "${kde[@]}" --sizes 679000
# The fastest way to compute on this GPU, as a version of its own.
models=("$out"/detector/dense_patch-*/models)
own=(--models "${models[0]}" "${device[@]}" --json)
step tune "${plumbline[@]}" tune fabric "${own[@]}" --activate
step predict_tuned "${benchmark[@]}" predict "${own[@]}" --category fabric --images "$out/detector/data/fabric/test" \
  --batches 1 32
step kde_small "${kde[@]}" --sizes 100000
step growth "${benchmark[@]}" growth "${device[@]}" --json --out "$out/growth"
