#!/usr/bin/env bash
# Train on this machine, in one process with all its GPUs.
#
#   launch/gpu_node.sh --workdir DIR [options] -- --config=FILE.py[:ARG] [--config.SETTING=VALUE ...]
#
#   --workdir DIR   folder of the run
#   --retries N     how often a run that was stopped and has saved is started again (3)
#   --cpu           do not ask for a GPU
#   --print         show the command, run nothing
#
# Ctrl-C or SIGTERM at this script stops the run after it has saved, for good.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

workdir="" retries=3 cpu="" child=""

on_signal() { [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null || true; }

attempt() {
  set -m # so that Ctrl-C comes to the run once, through this script
  "${command[@]}" &
  child=$!
  set +m
  wait_for "$child"
  return "$code"
}

parse "workdir retries" "cpu" "$@"
need_number retries
make_train
command=("$here/env.sh" --workdir "$workdir" -- "${train[@]}")
if [ -n "$dry" ]; then
  quote "${command[@]}"
  exit 0
fi
[ -n "$cpu" ] || nvidia-smi --query-gpu=name,memory.total --format=csv,noheader >&2 ||
  fail "nvidia-smi finds no GPU on this machine" 6
catch_signals
retry "$retries" attempt
