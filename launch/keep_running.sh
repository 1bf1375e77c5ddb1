#!/usr/bin/env bash
# Runs a command again whenever it was preempted (exit code 75); any other end is the end.
#   bash launch/keep_running.sh python -m jepa_jax.train ...
# SIGTERM and Ctrl-C are passed on, and then it is not run again.
set -uo pipefail

readonly PREEMPTED=75
# The command gets a process group of its own: a terminal's Ctrl-C goes to all of a group, and one that
# got it and what is passed on below would take the second for "now", and not save.
set -m
child="" asked_to_stop=no
trap 'asked_to_stop=yes; kill -TERM "$child" 2>/dev/null' TERM INT
while true; do
  "$@" &
  child=$!
  # One that came before the line above had nobody to be passed on to.
  if [ "$asked_to_stop" = yes ]; then kill -TERM "$child" 2>/dev/null; fi
  # A signal ends `wait`, but not the child, which may have a checkpoint to write.
  while kill -0 "$child" 2>/dev/null; do wait "$child"; done
  wait "$child"
  status=$?
  if [ "$status" -ne "$PREEMPTED" ] || [ "$asked_to_stop" = yes ]; then exit "$status"; fi
  printf 'preempted at %s; running again\n' "$(date)" >&2
done
