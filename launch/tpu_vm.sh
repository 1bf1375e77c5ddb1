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

state() {
  gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
    "--format=value(state.state)" 2>/dev/null || printf 'ABSENT'
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
  if [ "$dry_run" = yes ]; then return; fi
  say "waiting for the slice; Ctrl-C leaves it in the queue"
  while [ "$(state)" != ACTIVE ]; do
    case "$(state)" in FAILED | SUSPENDED | ABSENT) fail "$name: $(state)" ;; esac
    sleep 30
  done
}

install() {
  local archive=/tmp/jepa_jax.tar.gz
  run git archive --format=tar.gz "--output=$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$name:jepa_jax.tar.gz" "${place[@]}" --worker=all
  # The workers' own Python is too old; uv brings another.
  # shellcheck disable=SC2016  # HOME and PATH are the workers'
  on_workers all 'rm -rf jepa_jax/jepa_jax && mkdir -p jepa_jax && tar -xzf jepa_jax.tar.gz -C jepa_jax &&
cd jepa_jax && export PATH="$HOME/.local/bin:$PATH" &&
{ command -v uv || curl -LsSf https://astral.sh/uv/install.sh | sh; } &&
bash launch/local.sh --accelerator tpu --install'
}

start() {
  case " ${arguments[*]-} " in *" --config"[\ =]*) ;; *) fail "$verb: --config is missing" ;; esac
  case " ${arguments[*]-} " in *" --workdir"[\ =]*) ;; *) fail "$verb: --workdir is missing" ;; esac
  local command="bash launch/keep_running.sh .venv/bin/python -m jepa_jax.train --distributed auto"
  command+="$(printf ' %q' "${arguments[@]}")"
  # With the lock taken, a run is there already: two of them would fight for the accelerators.
  on_workers all "cd jepa_jax && { nohup flock -n train.lock $command >>train.log 2>&1 </dev/null & }"
}

case "$verb" in
  create) create ;;
  install) install ;;
  run) start ;;
  logs) on_workers 0 "tail -n 100 -F jepa_jax/train.log" ;;
  resume)
    now="$(if [ "$dry_run" = yes ]; then printf ACTIVE; else state; fi)"
    case "$now" in
      ACTIVE) ;;
      ABSENT) create && install ;;
      *)
        say "$name is $now: creating it anew"
        run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --quiet --force
        create && install
        ;;
    esac
    start
    ;;
  delete) run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --quiet --force ;;
esac
