#!/usr/bin/env bash
# Trains on one machine, with all its accelerators. See --help.
set -euo pipefail

usage() {
  cat <<'END'
usage: bash launch/local.sh [--dry-run] [--install] [--accelerator KIND] [--keep-running] ARGUMENT ...

Makes .venv with JAX for this machine's accelerators (once), says what devices JAX sees, and runs
python -m jepa_jax.train with the remaining arguments, in one process for all of them:

  bash launch/local.sh --config configs/in1k_vitb16_ep600.py --workdir runs/vitb \
      --config.data.path=/data/imagenet

  --dry-run           print the commands, run none
  --install           make .venv, and no more
  --accelerator KIND  cuda13, cuda12, tpu or cpu (default: cuda13 where there is nvidia-smi, else cpu)
  --keep-running      run again whenever the run was preempted (exit code 75)
END
}

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

accelerator="" install_only=no command=()
arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage && exit 0 ;;
    --dry-run) dry_run=yes ;;
    --install) install_only=yes ;;
    --keep-running) command=(bash launch/keep_running.sh) ;;
    --accelerator)
      accelerator="${2:-}"
      [ $# -gt 1 ] && shift
      ;;
    --accelerator=*) accelerator="${1#*=}" ;;
    *) arguments+=("$1") ;;
  esac
  shift
done

if [ -z "$accelerator" ]; then
  accelerator=cpu
  if command -v nvidia-smi >/dev/null 2>&1; then accelerator=cuda13; fi
fi
case "$accelerator" in
  cpu) make_environment -r requirements.txt ;;
  cuda12 | cuda13 | tpu) make_environment -r requirements.txt "jax[$accelerator]" ;;
  *) fail "--accelerator $accelerator: must be cuda13, cuda12, tpu or cpu" ;;
esac
if [ "$install_only" = yes ]; then exit; fi

# One that JAX does not see would be noticed much later, by the speed.
kind=gpu
case "$accelerator" in cpu | tpu) kind="$accelerator" ;; esac
see='import sys, jax; print(jax.devices()); sys.exit(jax.default_backend() != sys.argv[1])'
run .venv/bin/python -c "$see" "$kind" ||
  fail "--accelerator $accelerator: JAX does not see it; see above, and nvidia-smi or the TPU's logs"

command+=(.venv/bin/python -m jepa_jax.train ${arguments[@]+"${arguments[@]}"})
if [ "$dry_run" = yes ]; then
  run "${command[@]}"
else
  exec "${command[@]}"
fi
