#!/usr/bin/env bash
# Train on a Cloud TPU VM that exists, on all its workers.
#
#   launch/tpu_vm.sh --name TPU --zone ZONE --workdir DIR [options] -- --config=FILE.py[:ARG] ...
#   launch/tpu_vm.sh --name TPU --zone ZONE --stop
#
#   --name TPU      name of the TPU VM
#   --zone ZONE     its zone
#   --project ID    its project
#   --bucket NAME   mount this bucket as bucket/ (gcsfuse); DIR and ARG are then bucket/...
#   --workdir DIR   folder of the run on every worker; in a bucket or on a shared disk
#   --retries N     how often a run that was stopped and has saved is started again (3)
#   --stop          stop the run that another tpu_vm.sh started; it saves first
#   --print         show the commands, send nothing
#
# The committed files of this repository are copied, the environment is made, and the run is started;
# paths are relative to the copy. Ctrl-C or SIGTERM stops the run after it has saved, for good.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name="" zone="" project="" bucket="" workdir="" retries=3 stop="" child=""
copy=sgqlm # folder in the home of every worker

tpu() { # verb arguments...
  local verb=$1
  shift
  run gcloud compute tpus tpu-vm "$verb" "$@" "--zone=$zone" ${project:+"--project=$project"} --worker=all
}

remote() { tpu ssh "$name" "--command=$1"; }

on_signal() {
  say "stopping the run on $name; it saves first"
  remote "$stop_command" </dev/null || say "could not stop it; try again with --stop"
}

setup_command() {
  echo "set -e; mkdir -p $copy; tar -xzf $copy.tar.gz -C $copy; cd $copy"
  # the images bring Python 3.10; uv fetches a newer one
  # shellcheck disable=SC2016  # expanded on the worker
  echo 'export PATH="$HOME/.local/bin:$PATH"'
  echo 'command -v uv >/dev/null || python3 -m pip install --quiet --user uv'
  echo 'ACCEL=tpu scripts/setup_env.sh core'
  [ -z "$bucket" ] || mount_command
}

mount_command() { # a folder is renamed when a checkpoint is complete, which gcsfuse must be told
  echo 'command -v gcsfuse >/dev/null || { echo "gcsfuse is not installed" >&2; exit 6; }'
  echo "mkdir -p bucket; mountpoint -q bucket ||" \
    "gcsfuse --implicit-dirs --rename-dir-limit=200000 $(quote "$bucket") bucket"
}

attempt() {
  if [ -n "$dry" ]; then
    remote "$train_command"
    return
  fi
  remote "$train_command" </dev/null & # in the background, so that a signal is handled at once
  child=$!
  wait_for "$child"
  return "$code"
}

parse "name zone project bucket workdir retries" "stop" "$@"
need name zone
need_number retries
stop_command="$copy/launch/env.sh --stop sgqlm.pid"
if [ -n "$stop" ]; then
  remote "$stop_command"
  exit
fi
make_train
train_command="cd $copy && $(quote launch/env.sh --tpu-vm --exclusive ../sgqlm.pid \
  --workdir "$workdir" -- "${train[@]}")"

archive=$root/build/launch/$copy.tar.gz
run mkdir -p "$root/build/launch"
[ -z "$(git -C "$root" status --porcelain 2>/dev/null)" ] ||
  say "there are changes that are not committed; they are not copied"
run git -C "$root" archive --format=tar.gz "--output=$archive" HEAD
tpu scp "$archive" "$name:"
remote "$(setup_command)"
catch_signals
retry "$retries" attempt
