#!/usr/bin/env bash
# Trains on a Cloud TPU slice of any size, from this machine. See --help.
set -euo pipefail

usage() {
  cat <<'END'
usage: bash launch/tpu_vm.sh VERB --name NAME --zone ZONE [option ...] [train's argument ...]

verbs, in the order of their use:
  create    asks for the slice (a queued resource) and waits until it is there
            needs --type (v5litepod-256, v4-128, v6e-64, ...)
  install   copies this checkout's last commit to all workers and makes .venv there
  run       starts python -m jepa_jax.train --distributed auto on all workers, in the background;
            the remaining arguments are its own, --config and --workdir above all
  logs      shows what worker 0 says, as it goes on
  resume    after maintenance or a preemption: makes sure that the slice is there (creates and
            installs it anew if it was taken away), then does `run`: the same workdir resumes
  delete    gives the slice back

options:
  --dry-run        print the commands, run none
  --project P      default: gcloud's own
  --type T         accelerator type, for create and resume
  --version V      runtime version (default: that of the type)
  --spot           cheap, and may be taken away: use resume

The workdir and the data must be folders that all workers see: a mounted NFS share, or a bucket
through gcsfuse. Needs gcloud, logged in (gcloud auth login).
END
}

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

verb="" name="" type="" version=""
place=() spot=() arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage && exit 0 ;;
    --dry-run) dry_run=yes ;;
    --spot) spot=(--spot) ;;
    --name | --zone | --project | --type | --version)
      [ $# -gt 1 ] || fail "$1: needs a value"
      case "$1" in
        --name) name="$2" ;;
        --type) type="$2" ;;
        --version) version="$2" ;;
        *) place+=("$1=$2") ;;
      esac
      shift
      ;;
    create | install | run | logs | resume | delete)
      if [ -z "$verb" ]; then verb="$1"; else arguments+=("$1"); fi
      ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
[ -n "$verb" ] || fail "no verb: must be create, install, run, logs, resume or delete (see --help)"
[ -n "$name" ] || fail "--name: missing; a name for the slice"
case "${place[*]-}" in *--zone=*) ;; *) fail "--zone: missing; europe-west4-b, say" ;; esac
case "$verb" in
  run | resume) ;;
  *) [ ${#arguments[@]} -eq 0 ] || fail "$verb: unknown argument ${arguments[0]} (see --help)" ;;
esac
if [ "$dry_run" = no ] && ! command -v gcloud >/dev/null 2>&1; then
  fail "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
fi
cd "$repository"

on_workers() { # WHICH COMMAND
  run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" "--worker=$1" "--command=$2"
}

request="" # the queued resource's state, as last seen; empty: there is none

# state_of queued-resources|tpu-vm FIELD: empty if there is none of that name, which an error is not.
state_of() {
  local look=(gcloud compute tpus "$1" list "${place[@]}" "--filter=name~/$name\$" "--format=value($2)")
  if [ "$dry_run" = yes ]; then run "${look[@]}"; else "${look[@]}"; fi
}

# Waits until the slice can be used. Returns 1 if it is gone, or was never asked for.
wait_until_ready() {
  local seen slice
  while true; do
    seen="$(state_of queued-resources state.state)" || exit
    slice="$(state_of tpu-vm state)" || exit
    if [ "$dry_run" = yes ]; then
      [ "$request" != GONE ]
      return
    fi
    request="$seen"
    case "$request/$slice" in
      ACTIVE/READY) return 0 ;;
      /* | SUSPENDED/* | ACTIVE/PREEMPTED | ACTIVE/TERMINATED) return 1 ;;
      FAILED/* | ACTIVE/STOPPED) fail "$name: request $request, slice ${slice:-absent}; delete it first" ;;
    esac
    say "$name: request $request, slice ${slice:-absent}; Ctrl-C leaves it in the queue"
    sleep "${POLL_SECONDS:-30}"
  done
}

create() {
  [ -n "$type" ] || fail "--type: missing; v5litepod-256, say"
  if [ -z "$version" ]; then
    case "$type" in
      v5lite*) version=v2-alpha-tpuv5-lite ;;
      v5p*) version=v2-alpha-tpuv5 ;;
      v6e*) version=v2-alpha-tpuv6e ;;
      *) version=tpu-ubuntu2204-base ;;
    esac
  fi
  run gcloud compute tpus queued-resources create "$name" "${place[@]}" "--node-id=$name" \
    "--accelerator-type=$type" "--runtime-version=$version" ${spot[@]+"${spot[@]}"}
  request=ASKED
}

install() {
  local archive # in a folder that nobody else can write to
  archive="$(mktemp -d)/jepa_jax.tar.gz"
  run git archive --format=tar.gz "--output=$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$name:jepa_jax.tar.gz" "${place[@]}" --worker=all
  rm -r "$(dirname "$archive")"
  # The workers' own Python is too old; uv brings another.
  # shellcheck disable=SC2016  # HOME and PATH are the workers'
  on_workers all 'rm -rf jepa_jax/.installed jepa_jax/jepa_jax && mkdir -p jepa_jax && tar -xzf jepa_jax.tar.gz -C jepa_jax &&
cd jepa_jax && export PATH="$HOME/.local/bin:$PATH" &&
{ command -v uv || python3 -m pip install --user --quiet uv; } &&
bash launch/local.sh --accelerator tpu --install && touch .installed'
}

start() {
  case " ${arguments[*]-} " in *" --config"[\ =]*) ;; *) fail "$verb: --config is missing" ;; esac
  case " ${arguments[*]-} " in *" --workdir"[\ =]*) ;; *) fail "$verb: --workdir is missing" ;; esac
  local command="bash launch/keep_running.sh .venv/bin/python -m jepa_jax.train --distributed auto"
  command+="$(printf ' %q' "${arguments[@]}")"
  # Workers come up one after another.
  local patience="export JEPA_JAX_START_SECONDS=${JEPA_JAX_START_SECONDS:-600}"
  # With the lock taken, a run is in progress: two of them would fight for the accelerators.
  on_workers all "cd jepa_jax && { test -e .installed || { echo 'error: not installed' >&2; exit 2; }; } &&
{ flock -n train.lock true || { echo 'error: a run is in progress' >&2; exit 2; }; } &&
$patience && { nohup flock -n train.lock $command >>train.log 2>&1 </dev/null & }"
}

# A request that still waits keeps its place in the queue.
resume() {
  if [ "$dry_run" = yes ]; then request=GONE; fi # the longest way
  until wait_until_ready; do
    if [ -n "$request" ]; then
      run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --quiet --force
    fi
    create
  done
  if [ "$dry_run" = yes ]; then
    on_workers all "test -e jepa_jax/.installed" && install
  elif ! on_workers all "test -e jepa_jax/.installed"; then
    install
  fi
  start
}

case "$verb" in
  create)
    create
    wait_until_ready || fail "$name: is gone again, see resume"
    ;;
  install) install ;;
  run) start ;;
  logs) on_workers 0 "tail -n 100 -F jepa_jax/train.log" ;;
  resume) resume ;;
  delete) run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --quiet --force ;;
esac
