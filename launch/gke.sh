#!/usr/bin/env bash
# Train on a TPU slice of GKE with a JobSet (gke_jobset.yaml).
#
#   launch/gke.sh --name RUN --type v5e-16 --image IMAGE --bucket NAME --workdir bucket/DIR [options] \
#     -- --config=FILE.py:bucket/DATA ...
#
#   --name RUN         name of the JobSet
#   --type TYPE        slice: v5e-8, v5e-16, v4-8 or v4-16; a node pool of it must exist
#   --image IMAGE      built from the target `tpu` of the Dockerfile
#   --bucket NAME      mounted as bucket/ (Cloud Storage FUSE driver)
#   --workdir DIR      folder of the run, in bucket/
#   --account NAME     Kubernetes service account that may use the bucket (default)
#   --spot             on spot nodes
#   --max-hours N      the run is ended after so long (48)
#   --retries N        how often the run is started again after exit code 75 or a lost node (10)
#   --namespace NAME   namespace of kubectl
#   --wait             wait for the end; the exit code is that of the run
#   --print            show the JobSet, send nothing
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name="" type="" image="" bucket="" workdir="" account=default spot="" max_hours=48 retries=10
namespace="" wait=""
poll=${SGQLM_POLL_SECONDS:-30}

cluster() { kubectl ${namespace:+"--namespace=$namespace"} "$@"; }

find_slice() { # accelerator, topology, hosts, chips a host
  case $type in
    v5e-8) echo tpu-v5-lite-podslice 2x4 1 8 ;;
    v5e-16) echo tpu-v5-lite-podslice 4x4 4 4 ;;
    v4-8) echo tpu-v4-podslice 2x2x1 1 4 ;;
    v4-16) echo tpu-v4-podslice 2x2x2 2 4 ;;
    *) fail "unknown --type $type; known: v5e-8, v5e-16, v4-8, v4-16" ;;
  esac
}

render() { # the manifest; words become JSON strings, so that nothing in them is taken for YAML
  "${PYTHON:-python3}" - "$here/gke_jobset.yaml" "$name" "$image" "$bucket" "$account" "$spot" \
    "$retries" "$((max_hours * 3600))" "${slice[@]}" launch/env.sh --workdir "$workdir" -- "${train[@]}" <<'PY'
import json
import pathlib
import re
import sys

template, name, image, bucket, account, spot, retries, seconds, *rest = sys.argv[1:]
accelerator, topology, hosts, chips, *command = rest
nodes = {
    "cloud.google.com/gke-tpu-accelerator": accelerator,
    "cloud.google.com/gke-tpu-topology": topology,
}
if spot:
    nodes["cloud.google.com/gke-spot"] = "true"
values = {
    "NAME": name, "IMAGE": image, "BUCKET": bucket, "ACCOUNT": account, "NODES": nodes,
    "COMMAND": command, "RETRIES": int(retries), "SECONDS": int(seconds), "HOSTS": int(hosts),
    "CHIPS": int(chips),
}
text = pathlib.Path(template).read_text()
print(re.sub(r"@([A-Z]+)@", lambda found: json.dumps(values[found[1]]), text), end="")
PY
}

wait_for_end() {
  local ended codes
  while :; do
    ended=$(cluster get jobset "$name" \
      '-o=jsonpath={.status.conditions[?(@.status=="True")].type}') || ended=""
    case " $ended " in
      *" Completed "*) return 0 ;;
      *" Failed "*) break ;;
    esac
    sleep "$poll"
  done
  codes=$(cluster get pods "--selector=jobset.sigs.k8s.io/jobset-name=$name" \
    '-o=jsonpath={.items[*].status.containerStatuses[*].state.terminated.exitCode}') || codes=""
  for code in $codes; do
    [ "$code" = 0 ] || return "$code"
  done
  return 1
}

parse "name type image bucket workdir account max-hours retries namespace" "spot wait" "$@"
need name type image bucket
need_number max_hours retries
[[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  fail "--name must be small letters, digits and -, at most 40: '$name'"
found=$(find_slice)
read -ra slice <<<"$found"
make_train
case $workdir in bucket/*) ;; *) fail "--workdir must be in bucket/, the disks of pods go with them" ;; esac
manifest=$(render)
if [ -n "$dry" ]; then
  echo "$manifest"
  exit 0
fi
cluster create -f - <<<"$manifest"
say "follow it: kubectl${namespace:+ --namespace=$namespace} logs -f -l jobset.sigs.k8s.io/jobset-name=$name"
say "stop it:   kubectl${namespace:+ --namespace=$namespace} delete jobset $name"
[ -z "$wait" ] || wait_for_end
