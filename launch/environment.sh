# shellcheck shell=bash
# Sourced by the scripts beside it: makes `.venv` in the repository and installs what they need.
# For bash 3.2 (macOS) and later.

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
dry_run=no

say() { printf '%s\n' "$*" >&2; }

fail() {
  say "error: $*"
  exit 2
}

# Prints a command; runs it too, unless this is a dry run. Its output goes to standard error.
run() {
  printf '+' >&2
  printf ' %q' "$@" >&2
  printf '\n' >&2
  if [ "$dry_run" = no ]; then "$@" >&2; fi
}

# The first Python that is new enough; empty if there is none. $PYTHON goes first.
find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
    if [ -n "$candidate" ] && "$candidate" -c \
      'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      printf '%s' "$candidate"
      return
    fi
  done
}

# A name for an installation; another one whenever what it depends on changes.
fingerprint() {
  { cat "$repository"/requirements*.txt "$repository/pyproject.toml" && printf '%s' "$1"; } |
    cksum | cut -d ' ' -f 1
}

# make_environment WHAT: WHAT is what to hand to pip (-r requirements.txt), one word per argument.
make_environment() {
  local stamp python
  stamp=".venv/.installed-$(fingerprint "$*")"
  cd "$repository" || exit
  if [ -f "$stamp" ]; then return; fi # all done by an earlier call
  python="$(find_python)"
  if command -v uv >/dev/null 2>&1; then
    [ -x .venv/bin/python ] || run uv venv --quiet --python "${python:-3.12}" .venv
    run uv pip install --quiet --compile-bytecode --python .venv/bin/python "$@"
  else
    [ -n "$python" ] || fail "no Python 3.11 to 3.13 found: install one" \
      "(Debian/Ubuntu: apt-get install python3 python3-venv; macOS: brew install python@3.12)," \
      "or uv (https://docs.astral.sh/uv), or set PYTHON to it"
    if [ ! -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
      "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python can't make virtual environments: apt-get install python3-venv"
      run "$python" -m venv --clear .venv
    fi
    say "installing; this takes some minutes the first time"
    run .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"
  fi
  # Only now: an interrupted installation is taken up again by the next call.
  if [ "$dry_run" = no ]; then touch "$stamp"; fi
}
