#!/usr/bin/env bash
# The paper's tables on a host with a GPU, as far as they get in the time that there is.
#
#   benchmarks/gpu_tables.sh DATA OUT SECONDS
#
# DATA holds FashionMNIST and, in mvtec_256, categories of MVTec AD; OUT receives the studies. Each of the three studies
# may take SECONDS; the same command with the same OUT goes on where the last one stood, on any machine. PLUMBLINE names
# another program than that on the path, for example PLUMBLINE='python3 -m cli.main'; SIZE and DEVICE try it elsewhere.
set -euo pipefail
data=${1:?the folder of the data}
out=${2:?the folder for the studies}
seconds=${3:?how long each study may take}
size=${SIZE:-paper}
read -ra plumbline <<<"${PLUMBLINE:-plumbline}"
mkdir -p "$out"

study() {
  local name=$1 status=0
  shift
  timeout --foreground --signal TERM "$seconds" "${plumbline[@]}" reproduce "$@" --out "$out/$name" --size "$size" \
    --device "${DEVICE:-cuda}" 2>&1 | tee -a "$out/$name.log" || status=$?
  # 124: the time was over, and SIGTERM left a checkpoint to go on from.
  [ "$status" = 124 ] && echo "$name: goes on when this is started again" && status=0
  return "$status"
}

semantic=(semantic --dataset fashion-mnist --data "$data" --methods 'rotation,distribution_augmented' --seeds 1)
failed=0  # a study that fails leaves the others
# One class at the whole schedule, every class at a shorter one, and defects.
study semantic "${semantic[@]}" --classes 0 || failed=$?
study semantic_short "${semantic[@]}" --steps "${SHORT_STEPS:-5000}" || failed=$?
study mvtec mvtec --data "$data/mvtec_256" --methods rotation || failed=$?
exit "$failed"
