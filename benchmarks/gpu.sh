#!/usr/bin/env bash
# What a host with a GPU is asked for: correctness on CUDA, speed, both encoders trained on real parts, and
# the studies of what fast detectors lose.
#
#   benchmarks/gpu.sh DATA OUT [CATEGORY...]
#
# DATA holds the categories in MVTec AD's layout; OUT receives logs, models and reports. A run that was cut short goes
# on where it stood when it is started again with the same OUT. PLUMBLINE and PYTHON name other programs than those on
# the path, for example PLUMBLINE='python3 -m cli.main'.
set -euo pipefail
data=${1:?the folder of the categories}
out=${2:?the folder for the results}
shift 2
categories=("${@:-bottle}")
read -ra plumbline <<<"${PLUMBLINE:-plumbline}"
python=${PYTHON:-python3}
mkdir -p "$out"

"$python" -m pytest -m cuda -rs -p no:cacheprovider 2>&1 | tee "$out/tests.log"
"${plumbline[@]}" benchmark scan --device cuda --json | tee "$out/scan.txt"
"$(dirname "$0")/gpu_speed.sh" "$out/speed"

# The paper's encoder, task and optimizer (section 4.2, appendix A.4); it does not give the number of patches, so the
# number of steps is ours.
paper=(--encoder resnet18_patch --pretext rotation --crop-patches 1 --batch-size 64 --learning-rate 0.01 --steps 20000)
for category in "${categories[@]}"; do
  for name in dense paper; do
    settings=()
    [ "$name" = paper ] && settings=("${paper[@]}")
    models="$out/models-$name"
    [ -e "$out/report-$name-$category/metrics.json" ] && continue
    "${plumbline[@]}" train "$category" --data "$data" --models "$models" --runs "$out/runs-$name" \
      --device cuda --resume --json "${settings[@]}" 2>&1 | tee -a "$out/train-$name-$category.log"
    "${plumbline[@]}" evaluate "$category" --data "$data" --models "$models" --device cuda \
      --out "$out/report-$name-$category" | tee "$out/evaluate-$name-$category.txt"
  done
done

# What a fast detector loses: small banks against every window of every good image, and widths against the largest.
for size in small large; do
  for category in "${categories[@]}"; do
    models="$out/models-$size"
    [ -e "$models/$category/active" ] && continue
    "${plumbline[@]}" train "$category" --data "$data" --models "$models" --runs "$out/runs-$size" --size "$size" \
      --device cuda --resume --json 2>&1 | tee -a "$out/train-$size-$category.log"
  done
done
study=(--data "$data" --device cuda --json)
"$python" -m benchmarks.compression "${categories[@]}" --models "$out/models-dense" --out "$out/compression" \
  "${study[@]}" | tee "$out/compression.txt"
"$python" -m benchmarks.sizes "${categories[@]}" --models "$out"/models-{small,dense,large} --out "$out/sizes" \
  "${study[@]}" | tee "$out/sizes.txt"
# And what half precision changes of what is found.
"$python" -m benchmarks.precision "${categories[@]}" --models "$out/models-dense" --out "$out/precision" \
  "${study[@]}" | tee "$out/precision.txt"
