#!/usr/bin/env bash
# Train as a managed job of SkyPilot (sky.yaml): lost machines are replaced, the last is taken down.
#
#   launch/sky.sh --bucket NAME --workdir bucket/DIR [options] -- --config=FILE.py:bucket/DATA ...
#
#   --bucket NAME    Google bucket, mounted as bucket/
#   --workdir DIR    folder of the run, in bucket/
#   --gpus NAME      as of sky: tpu-v5litepod-16, tpu-v4-8, H200:1, ... (tpu-v5litepod-16)
#   --job-name NAME  name of the job (sgqlm)
#   --on-demand      no spot machines
#   --print          show the command, send nothing
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

bucket="" workdir="" gpus=tpu-v5litepod-16 job_name=sgqlm on_demand=""
parse "bucket workdir gpus job-name" "on-demand" "$@"
need bucket
make_train
case $workdir in bucket/*) ;; *) fail "--workdir must be in bucket/, the machine's disks go with it" ;; esac
case $gpus in tpu-*) accel=tpu ;; *) accel=cuda ;; esac
cd "$root"
run sky jobs launch --yes "--name=$job_name" "--gpus=$gpus" ${on_demand:+--no-use-spot} \
  --env "SGQLM_BUCKET=$bucket" --env "SGQLM_WORKDIR=$workdir" --env "SGQLM_ACCEL=$accel" \
  --env "SGQLM_WORDS=$(quote "${train[@]:2}")" launch/sky.yaml
