#!/usr/bin/env bash
# What a host with a GPU is asked for about speed, in minutes: inspections of both encoders, of the default as it is
# and tuned, the kernel density, and growth.
#
#   benchmarks/gpu_speed.sh OUT
#
# OUT receives a text file for each step, whose last line is its JSON object. A step takes at most STEP_SECONDS, and one
# that fails or takes longer leaves the others. PLUMBLINE and PYTHON name other programs than those on the path; DEVICE
# tries it elsewhere.
set -uo pipefail
out=${1:?the folder for the results}
read -ra plumbline <<<"${PLUMBLINE:-plumbline}"
device=(--device "${DEVICE:-cuda}")
mkdir -p "$out"

step() {
  local name=$1 begun=$SECONDS status=0
  shift
  timeout --signal TERM "${STEP_SECONDS:-240}" "$@" >"$out/$name.txt" 2>"$out/$name.log" || status=$?
  echo "$name: status $status, $((SECONDS - begun)) s" | tee -a "$out/steps.txt"
  [ "$status" = 0 ] || tail -3 "$out/$name.log"
}

benchmark=("${plumbline[@]}" benchmark)
detector=("${device[@]}" --folder "$out/detector" --json)
step predict "${benchmark[@]}" predict "${detector[@]}" --batches 1 32
step predict_resnet18_patch "${benchmark[@]}" predict "${detector[@]}" --batches 1 32 \
  --encoder resnet18_patch --steps 20 --repeats 5
# The fastest way to compute on this GPU, as a version of its own.
models=("$out"/detector/dense_patch-*/models)
own=(--models "${models[0]}" "${device[@]}" --json)
step tune "${plumbline[@]}" tune fabric "${own[@]}" --activate
step predict_tuned "${benchmark[@]}" predict "${own[@]}" --category fabric --images "$out/detector/data/fabric/test" \
  --batches 1 32
step kde "${benchmark[@]}" kde "${device[@]}" --json --sizes 100000 679000 --repeats 3
step growth "${benchmark[@]}" growth "${device[@]}" --json --out "$out/growth"
