#!/usr/bin/env bash
# Runs a command again whenever it was preempted (exit code 75), or aborted (134) after five minutes
# or more, as JAX does when another process is lost; any other end is the end.
#   bash launch/keep_running.sh python -m jepa_jax.train ...
# SIGTERM and Ctrl-C are passed on, and then it is not run again.
set -uo pipefail

readonly PREEMPTED=75 ABORTED=134
readonly LONG_ENOUGH=300 # seconds: what aborts sooner would do so again and again
# The command gets a process group of its own: a terminal's Ctrl-C goes to all of a group, and one that
# got it and what is passed on below would take the second for "now", and not save.
set -m
child="" asked_to_stop=no
trap 'asked_to_stop=yes; kill -TERM "$child" 2>/dev/null' TERM INT
while true; do
  started="$(date +%s)"
  "$@" &
  child=$!
  # One that came before the line above had nobody to be passed on to.
  if [ "$asked_to_stop" = yes ]; then kill -TERM "$child" 2>/dev/null; fi
  # A signal ends `wait`, but not the child, which may have a checkpoint to write.
  while kill -0 "$child" 2>/dev/null; do wait "$child"; done
  wait "$child"
  status=$?
  if [ "$asked_to_stop" = yes ]; then exit "$status"; fi
  case "$status" in
    "$PREEMPTED") why=preempted ;;
    "$ABORTED")
      why=aborted
      [ $(($(date +%s) - started)) -ge "$LONG_ENOUGH" ] || exit "$status"
      ;;
    *) exit "$status" ;;
  esac
  printf '%s at %s; running again\n' "$why" "$(date)" >&2
done
