#!/usr/bin/env bash
# Ask for a Cloud TPU slice, train on it, and delete it, whatever happens.
#
#   launch/queued_resource.sh --name TPU --zone ZONE --type TYPE --workdir DIR [options] -- --config=...
#
#   --name TPU             name of the queued resource and of its TPU VM
#   --zone ZONE            zone
#   --project ID           project
#   --type TYPE            accelerator type: v5litepod-16, v4-8, ...
#   --runtime VERSION      software version of the TPU VM; known for v4 and v5litepod
#   --spot                 preemptible; what is taken away is asked for again
#   --service-account ADR  account of the TPU VM; it must be allowed to delete TPUs (see below)
#   --wait-hours N         give up when there is no capacity for so long (12)
#   --max-hours N          stop and delete after so long (24)
#   --retries N            how often the slice is made again, or the run started again (10)
#   --bucket, --workdir    as in tpu_vm.sh; spot needs a bucket, a slice's disks go with it
#   --print                show the commands, send nothing
#
# The slice is deleted when this script ends: after the run, an error, Ctrl-C or --max-hours. Should
# this machine go away, the slice deletes itself a quarter of an hour after --max-hours.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name="" zone="" project="" type="" runtime="" spot="" service_account=""
wait_hours=12 max_hours=24 retries=10 bucket="" workdir="" child=""
poll=${SGQLM_POLL_SECONDS:-15}

queue() { # verb arguments...
  local verb=$1
  shift
  run gcloud compute tpus queued-resources "$verb" "$name" "--zone=$zone" \
    ${project:+"--project=$project"} "$@"
}

default_runtime() {
  case $type in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v4-*) echo tpu-ubuntu2204-base ;;
    *) fail "the runtime version of $type is not known here; give --runtime" ;;
  esac
}

guard() { # start-up script of every worker: the slice never outlives the run by much
  local remove
  remove=$(quote gcloud compute tpus queued-resources delete "$name" "--zone=$zone" \
    ${project:+"--project=$project"} --force --quiet)
  echo '#!/bin/bash'
  echo "setsid bash -c $(quote "sleep $((max_hours * 3600 + 900)); $remove") </dev/null >/dev/null 2>&1 &"
}

create() {
  if [ -z "$dry" ] && state >/dev/null 2>&1; then
    fail "there is a queued resource $name already; delete it or give another --name"
  fi
  is_created=1 # from here on: a request that fails half-way is deleted too
  queue create "--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime" \
    ${spot:+--spot} "--valid-until-duration=${wait_hours}h" --scopes=cloud-platform \
    ${service_account:+"--service-account=$service_account"} \
    "--metadata-from-file=startup-script=$guard_file"
}

delete() {
  [ -n "$is_created" ] || return 0
  is_created=""
  queue delete --force --quiet || say "could not delete $name; delete it by hand"
}

state() { queue describe '--format=value(state.state)'; }

wait_until_active() {
  local now
  until now=$(state) && [ "$now" = ACTIVE ]; do
    case $now in FAILED | SUSPENDED | SUSPENDING) fail "$name became $now before it was there" 6 ;; esac
    [ -z "$stopped" ] || exit 130
    say "waiting for $name: ${now:-no answer}"
    sleep "$poll"
  done
}

# A process in the background is deaf to SIGINT.
on_signal() { [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true; }

train_once() { # with --max-hours
  "$here/tpu_vm.sh" "${vm[@]}" &
  child=$!
  while kill -0 "$child" 2>/dev/null && [ -z "$stopped" ]; do
    if [ "$SECONDS" -ge "$deadline" ]; then
      say "$max_hours hours are over"
      is_over=1
      kill -TERM "$child" 2>/dev/null || true
      break
    fi
    sleep "$pause"
  done
  wait_for "$child"
}

is_lost() { # the run can go on elsewhere, or on this slice again
  case $code in 0 | 2 | 3 | 4 | 5 | 6) return 1 ;; "$preempted" | "$lost") return 0 ;; esac
  [ "$(state)" != ACTIVE ]
}

parse "name zone project type runtime service-account wait-hours max-hours retries bucket workdir" \
  "spot" "$@"
need name zone type
need_number wait_hours max_hours retries
[ "$max_hours" -gt 0 ] || fail "--max-hours must be at least 1"
make_train
[ -z "$spot" ] || [ -n "$bucket" ] || fail "--spot needs --bucket: a slice that is taken away loses its disks"
runtime=${runtime:-$(default_runtime)}
vm=("--name=$name" "--zone=$zone" ${project:+"--project=$project"} ${bucket:+"--bucket=$bucket"}
  "--workdir=$workdir" --retries=0 -- "${words[@]}")
deadline=$((SECONDS + max_hours * 3600))
deadline=${SGQLM_DEADLINE_SECONDS:-$deadline}
pause=${SGQLM_POLL_SECONDS:-2}
guard_file=$root/build/launch/$name.guard.sh
is_created="" is_over=""
if [ -n "$dry" ]; then
  echo "# $guard_file, which runs on every worker:"
  guard | sed 's/^/#   /'
  create
  "$here/tpu_vm.sh" --print "${vm[@]}"
  delete
  exit 0
fi
mkdir -p "$root/build/launch"
guard >"$guard_file"
catch_signals
trap delete EXIT
for ((left = retries; ; left--)); do
  [ -n "$is_created" ] || create
  wait_until_active
  train_once
  if ! is_lost || [ "$left" -eq 0 ] || [ -n "$stopped$is_over" ]; then
    exit "$code"
  fi
  say "the run ended with $code; going on ($left more times)"
  [ "$(state)" = ACTIVE ] || delete
done
