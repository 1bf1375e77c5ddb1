#!/usr/bin/env bash
# From a fresh machine to a pretrained, probed model. See --help.
set -euo pipefail

usage() {
  cat <<'END'
usage: bash launch/quickstart.sh [--dry-run] [--workdir DIR] [--config.a.b=VALUE ...]

Makes .venv and installs requirements.txt there (once), pretrains I-JEPA on the bundled
Fashion-MNIST images, probes it, prints a table, and draws pictures into the workdir
(default: runs/quickstart). Needs Python 3.11 to 3.13, or uv; no accelerator.

  --dry-run   print the commands, run none
  other arguments go to python -m jepa_jax.quickstart
END
}

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

arguments=()
for argument in "$@"; do
  case "$argument" in
    -h | --help) usage && exit 0 ;;
    --dry-run) dry_run=yes ;;
    *) arguments+=("$argument") ;;
  esac
done

make_environment -r requirements.txt
# Large pages, where glibc and the kernel have them: steps on a CPU were 1.4 times as fast.
tunables="${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}"
command=(env "GLIBC_TUNABLES=$tunables" .venv/bin/python -m jepa_jax.quickstart)
command+=(${arguments[@]+"${arguments[@]}"})
if [ "$dry_run" = yes ]; then
  run "${command[@]}"
else
  exec "${command[@]}"
fi
