#!/usr/bin/env bash
# Run a command as one process of a training run. All launchers start sgqlm through this.
#
#   launch/env.sh --workdir DIR [--tpu-vm] [--exclusive FILE] [--print] -- COMMAND...
#   launch/env.sh --stop FILE
#
#   --workdir DIR     folder of the run; logs/process-<n>.log and compile_cache/ lie in it
#   --tpu-vm          find the other workers of the slice (Cloud TPU VM)
#   --exclusive FILE  keep the process number in FILE; a run that FILE names is stopped first
#   --stop FILE       stop the run that FILE names and wait until it has saved
#   --print           show the environment and the command, run nothing
#
# Process 0 also writes to the console. SIGTERM and SIGINT go on to the command, and its exit code
# is the one of this script.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

workdir="" tpu_vm="" exclusive="" stop="" child=""
patience=900 # fifths of a second
settings=() # NAME=value, what this script adds to the environment

add() { # name value: keep what the user has set
  [ -n "${!1:-}" ] || settings+=("$1=$2")
}

metadata() {
  curl --silent --show-error --fail --retry 5 --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

join_tpu_vm() {
  local workers number first
  workers=$(metadata worker-network-endpoints) || fail "the TPU metadata server gives no workers" 6
  case $workers in *,*) ;; *) return ;; esac
  number=$(metadata agent-worker-number) || fail "the TPU metadata server gives no worker number" 6
  first=${workers%%,*} # an address, or name:id:address
  join "${first##*:}" "$(tr -cd , <<<"$workers" | wc -c | awk '{ print $1 + 1 }')" "$number"
}

join_sky() { # SkyPilot: one address a line
  local count
  count=$(grep -c . <<<"$SKYPILOT_NODE_IPS")
  [ "$count" -lt 2 ] || join "$(head -n 1 <<<"$SKYPILOT_NODE_IPS")" "$count" "$SKYPILOT_NODE_RANK"
}

join() { # address of process 0, number of processes, own number: as jax.distributed takes them
  settings+=("JAX_COORDINATOR_ADDRESS=$1:8482" "JAX_NUM_PROCESSES=$2" "JAX_PROCESS_ID=$3")
}

make_settings() {
  add JAX_COMPILATION_CACHE_DIR "$workdir/compile_cache"
  # of a GPU's memory; JAX takes 0.75 by itself (its page on GPU memory allocation)
  add XLA_PYTHON_CLIENT_MEM_FRACTION 0.9
  add PYTHONUNBUFFERED 1
  if [ -n "${JAX_COORDINATOR_ADDRESS:-}" ]; then
    return # Slurm and GKE are recognised by JAX itself
  elif [ -n "$tpu_vm" ]; then
    join_tpu_vm
  elif [ -n "${SKYPILOT_NODE_IPS:-}" ]; then
    join_sky
  fi
}

is_run() { # process number: after a restart of the machine it may belong to something else
  ps -o stat= -o args= -p "$1" 2>/dev/null | grep -v '^Z' | grep -q env.sh
}

stop_run() { # file with a process number
  local number waited=0
  number=$(cat "$1" 2>/dev/null) || return 0
  is_run "${number:-0}" || return 0
  say "stopping process $number"
  kill -TERM "$number" 2>/dev/null || return 0
  while is_run "$number"; do
    [ "$waited" -lt "$patience" ] || fail "process $number still runs after $((patience / 5)) s" 6
    sleep 0.2
    waited=$((waited + 1))
  done
}

on_signal() { [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null || true; }

execute() { # the command, with its output in the log
  local number log reader="" left=250
  number=${JAX_PROCESS_ID:-${SLURM_PROCID:-${TPU_WORKER_ID:-${JOB_COMPLETION_INDEX:-0}}}}
  log=$workdir/logs/process-$number.log
  mkdir -p "$workdir/logs" || fail "$workdir cannot be written" 6
  echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) $(quote "${words[@]}")" >>"$log"
  if [ "$number" = 0 ]; then
    exec 3> >(exec tee -i -a "$log")
    reader=$!
  else
    exec 3>>"$log"
  fi
  set -m # the command leads a process group, so Ctrl-C comes to it once, through this script
  "${words[@]}" </dev/null >&3 2>&1 3>&- &
  child=$!
  exec 3>&-
  [ -z "$stopped" ] || on_signal "$stopped"
  wait_for "$child"
  # the last lines are often the reason; a worker that outlives the command is not waited for
  while [ -n "$reader" ] && kill -0 "$reader" 2>/dev/null && [ "$left" -gt 0 ]; do
    left=$((left - 1))
    sleep 0.02
  done
  if [ "$number" != 0 ] && [ "$code" != 0 ]; then
    say "process $number ended with $code; the end of $log:"
    tail -n 20 "$log" >&2
  fi
}

parse "workdir exclusive stop" "tpu-vm" "$@"
if [ -n "$stop" ]; then
  stop_run "$stop"
  exit 0
fi
need workdir
check_folder "$workdir"
[ ${#words[@]} -gt 0 ] || fail "the command is missing"
make_settings
PATH=$root/${VENV:-.venv}/bin:$PATH
if [ -n "$dry" ]; then
  quote env "${settings[@]}" "${words[@]}"
  exit 0
fi
command -v "${words[0]}" >/dev/null || fail "${words[0]} is not installed; run make setup" 6
for setting in "${settings[@]}"; do export "${setting?}"; done
if [ -n "$exclusive" ]; then
  stop_run "$exclusive"
  echo $$ >"$exclusive"
fi
catch_signals
execute
[ -z "$exclusive" ] || rm -f "$exclusive"
exit "$code"
