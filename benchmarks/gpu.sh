#!/usr/bin/env bash
# All that is to be measured on one GPU, in under nine minutes:
#
#     bash benchmarks/gpu.sh [--rehearse] [FOLDER]
#
# FOLDER (default: $OUT, else ./gpu_results) receives results.jsonl, one line a measurement, and
# peers.jsonl; the table is printed at the end. What time does not allow is skipped, and named.
# Ordered by how much depends on it. --rehearse runs the same commands on tiny models, anywhere.
# Wheels that the machine lacks are taken from ./wheels, if that is there.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

python="${PYTHON:-python3}"
rehearse=no
folder="${OUT:-gpu_results}"
for argument in "$@"; do
  case "$argument" in
    --rehearse) rehearse=yes ;;
    *) folder="$argument" ;;
  esac
done
mkdir -p "$folder" || exit 1
results="$folder/results.jsonl" peers="$folder/peers.jsonl"
: >"$results"
: >"$peers"
deadline=$((SECONDS + ${SECONDS_AT_MOST:-520}))

if [ -d wheels ]; then "$python" -m pip install --quiet --no-index --no-deps wheels/*.whl; fi
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"

# measure FILE SECONDS NAME [VARIABLE=VALUE ...] -- MODULE ARGUMENTS: its JSON goes to FILE.
measure() {
  local file="$1" seconds="$2" name="$3" left=$((deadline - SECONDS)) line
  local -a environment=()
  shift 3
  while [ "$1" != "--" ]; do environment+=("$1") && shift; done
  shift
  if [ "$left" -lt 20 ]; then
    echo "skipped, no time left: $name" >&2
    return
  fi
  if [ "$rehearse" = yes ]; then
    set -- "$@" --size ti --patch-size 16 --image-size 64 --batch-size 4 --steps 1
  fi
  echo "$name: python -m $*" >&2
  line="$(env ${environment[@]+"${environment[@]}"} timeout "$((seconds < left ? seconds : left))" \
    "$python" -m "$@" 2>"$folder/last_error.txt" | tail -n 1)"
  if [ -z "$line" ]; then
    echo "failed, or ran out of time: $name: $(tail -n 2 "$folder/last_error.txt")" >&2
    return
  fi
  printf '{"name": "%s", "result": %s}\n' "$name" "$line" >>"$file"
}
step() { measure "$results" "$@"; }

h="benchmarks.train_step --size h --patch-size 14 --steps 12"
l="benchmarks.train_step --size l --steps 20"
b="benchmarks.train_step --size b --steps 30"
# shellcheck disable=SC2086  # the variables above are lists of words
{
  step 90 "H/14, 128, dots, loop" -- $h --batch-size 128 --remat dots
  step 90 "L/16, 128, loop" -- $l --batch-size 128
  step 60 "B/16, 256, loop" -- $b --batch-size 256
  measure "$peers" 120 "B/16, 128" -- benchmarks.peer_torch --size b --batch-size 128 --rounds 3 --steps 10
  step 60 "B/16, 256, loop, XLA attention" -- $b --batch-size 256 --attention xla
  step 60 "B/16, 256, unrolled" -- $b --batch-size 256 --unroll
  step 60 "B/16, 256, loop, no command buffers" XLA_FLAGS=--xla_gpu_enable_command_buffer= -- $b --batch-size 256
  step 60 "B/16, 256, loop, O1" JAX_OPTIMIZATION_LEVEL=O1 -- $b --batch-size 256
  step 90 "H/14, 64, loop" -- $h --batch-size 64
  step 90 "H/14, 128, dots, loop, XLA attention" -- $h --batch-size 128 --remat dots --attention xla
  measure "$peers" 150 "H/14, 32" -- benchmarks.peer_torch --size h --patch-size 14 --batch-size 32 --rounds 2 --steps 5
  step 90 "H/14, 256, dots, loop" -- $h --batch-size 256 --remat dots
  step 90 "H/14, 256, full, loop" -- $h --batch-size 256 --remat full
}

"$python" - "$results" "$peers" <<'END_OF_PYTHON'
import json
import sys

results, peers = ([json.loads(line) for line in open(path)] for path in sys.argv[1:])
print("| measured | step, s | img/s | TFLOP/s | of the measured peak | of the data sheet | GB | compile, s |")
print("| --- | --- | --- | --- | --- | --- | --- | --- |")
for entry in results:
    r = entry["result"]
    sheet = r["mfu_of_data_sheet"]
    memory = r["memory_bytes_peak_in_use"] or r["memory_bytes_by_compiler"]
    print(
        f"| {entry['name']} | {r['step_seconds']['median']} | {r['images_per_second']} "
        f"| {r['tflop_per_second_per_device']} | {r['mfu_of_measured_peak']:.1%} "
        f"| {f'{sheet:.1%}' if sheet else ''} | {memory / 1e9:.1f} | {r['compile_seconds']} |"
    )
for entry in peers:
    print(f"\nagainst PyTorch, {entry['name']}: {json.dumps(entry['result'])}")
if results:
    r = results[0]["result"]
    print(f"\n{r['devices']}, jax {r['jax']}, measured peak {r['measured_peak_tflop_per_second']} TFLOP/s")
END_OF_PYTHON
rm -f "$folder/last_error.txt"
