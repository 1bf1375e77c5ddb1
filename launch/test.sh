#!/usr/bin/env bash
# From a fresh machine to a tested checkout. See --help.
set -euo pipefail

usage() {
  cat <<'END'
usage: bash launch/test.sh [--dry-run] [--interop] [pytest arguments ...]

Makes .venv and installs the package's dependencies and those of its tests there (once), and
runs the test suite. Needs Python 3.11 to 3.13, or uv; no accelerator.

  --dry-run   print the commands, run none
  --interop   install PyTorch and transformers too (requirements-interop.txt), for the tests that
              compare with them;
              without it they are skipped
  other arguments go to pytest
END
}

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

arguments=()
interop=()
for argument in "$@"; do
  case "$argument" in
    -h | --help) usage && exit 0 ;;
    --dry-run) dry_run=yes ;;
    --interop) interop=(-r requirements-interop.txt) ;;
    *) arguments+=("$argument") ;;
  esac
done

make_environment -r requirements.txt -e ".[test]" ${interop[@]+"${interop[@]}"}
# Compilation, where the time goes, uses one core; a file's tests share what it compiled. The order of
# the files is that of tests/conftest.py.
command=(.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder ${arguments[@]+"${arguments[@]}"})
if [ "$dry_run" = yes ]; then
  run "${command[@]}"
else
  exec "${command[@]}"
fi
