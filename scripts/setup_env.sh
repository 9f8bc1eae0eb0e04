#!/usr/bin/env bash
# Make .venv and install the pinned packages: `setup_env.sh core` for use, `setup_env.sh dev` for
# the tests as well. Does nothing when the environment is current. See the Makefile for PYTHON,
# VENV, ACCEL and TORCH. The ordinary settings of pip and uv (PIP_*, UV_*, proxies) are honoured.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
profile=${1:-core}
venv=${VENV:-.venv}
accel=${ACCEL:-cpu}
torch=${TORCH:-cpu}
torch_index=https://download.pytorch.org/whl/cpu
new_mb=4096   # free space for a new environment with its downloads
more_mb=1024  # and for a change to one that exists
SECONDS=0

say() { echo "setup: $*"; }
die() {
  echo "setup: $*" >&2
  exit 6
}

case $profile in core | dev) ;; *) die "unknown profile '$profile'; use core or dev" ;; esac
case $torch in cpu | none) ;; *) die "TORCH='$torch' is not known; use TORCH=cpu or TORCH=none" ;; esac
[ -f "constraints/$accel.txt" ] || die "ACCEL='$accel' is not known; use cpu, cuda or tpu"
constraints=constraints/$accel.txt

# A stamp says what is installed; it is void when a pin, a dependency or the folder changes.
key=$({ cat setup.py constraints/cpu.txt "$constraints" "$0" && pwd; } | cksum | tr ' ' -)
core_stamp=$venv/.sgqlm-core-$accel-$key
dev_stamp=$venv/.sgqlm-dev-$accel-$torch-$key
stamp=$core_stamp
[ "$profile" = core ] || stamp=$dev_stamp
[ -e "$stamp" ] && "$venv/bin/python" -c '' 2>/dev/null && exit 0

check_disk() { # megabytes
  local free
  free=$(($(df -Pk . | awk 'NR == 2 { print $4 }') / 1024))
  [ "$free" -ge "$1" ] ||
    die "not enough disk space: $free MB free in $PWD, $1 MB needed; free some, or clone to another disk"
}

fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
  local name
  if [ -n "${PYTHON:-}" ]; then
    fits "$PYTHON" || die "PYTHON=$PYTHON is not Python 3.11 or newer ($("$PYTHON" -V 2>&1 || true)); name another"
    echo "$PYTHON"
    return
  fi
  for name in python3 python3.13 python3.12 python3.11 python3.14; do
    if fits "$name"; then
      echo "$name"
      return
    fi
  done
  # uv can fetch an interpreter by itself
  if [ -n "$uv" ]; then
    echo 3.12
    return
  fi
  die "Python 3.11 or newer is needed, found $(python3 -V 2>/dev/null || echo none); on Debian or Ubuntu: sudo apt install python3.11 python3.11-venv, or give PYTHON=/path/to/python3.11"
}

make_venv() {
  local python version
  python=$(find_python)
  check_disk "$new_mb"
  rm -rf "$venv"
  if [ -n "$uv" ]; then
    must "making $venv" uv venv --quiet --seed --python "$python" "$venv"
    return
  fi
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    die "$python has no venv module (ensurepip is not available); on Debian or Ubuntu: sudo apt install python$version-venv"
  fi
  must "making $venv" "$python" -m venv "$venv"
}

# Run a command with its output in a log, and say every 15 s that it still runs.
logged() { # what, command...
  local what=$1 pid code=0 start=$SECONDS last=$SECONDS
  shift
  "$@" >"$log" 2>&1 &
  pid=$!
  trap 'kill "$pid" 2>/dev/null; exit 130' INT TERM
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.2
    if [ $((SECONDS - last)) -ge 15 ]; then
      last=$SECONDS
      say "$what, $((SECONDS - start)) s, $(du -sm "$venv" 2>/dev/null | cut -f1) MB"
    fi
  done
  wait "$pid" || code=$?
  trap - INT TERM
  return "$code"
}

must() { # what, command...: stop with the end of the log if the command fails
  if ! logged "$@"; then
    tail -n 15 "$log" >&2
    ! grep -q 'No space left' "$log" || die "$1 failed: the disk is full; free $new_mb MB, then run the same command again"
    die "$1 failed (the whole output: $log); check the network, then run the same command again"
  fi
}

pip_install() {
  if [ -n "$uv" ]; then
    uv pip install --python "$venv/bin/python" "$@"
  else
    "$venv/bin/python" -m pip install --disable-pip-version-check "$@"
  fi
}

install_torch() {
  local pin
  pin=$(grep '^torch==' constraints/cpu.txt)
  # PyPI's Linux build brings several GB of CUDA libraries, so the CPU index comes first.
  if ! PIP_TIMEOUT=10 PIP_RETRIES=0 UV_HTTP_TIMEOUT=10 UV_HTTP_RETRIES=0 \
    logged "installing torch" pip_install --no-deps --index-url "$torch_index" "$pin"; then
    say "$torch_index did not answer in time; taking $pin from the default index"
  fi
  must "installing torch" pip_install -c "$constraints" "$pin"
}

uv=$(command -v uv || true)
log=$venv.log
if ! { [ -f "$venv/pyvenv.cfg" ] && fits "$venv/bin/python"; }; then
  make_venv
else
  check_disk "$more_mb"
fi
extras=""
[ "$accel" = cpu ] || extras=$accel
[ "$profile" = core ] || extras=${extras:+$extras,}dev
say "installing the pinned packages into $venv ($("$venv/bin/python" -V), ${uv:+uv}${uv:-pip}); a few minutes the first time"
must "installing build tools" pip_install -c "$constraints" setuptools wheel
must "installing packages" pip_install -c "$constraints" --no-build-isolation -e ".${extras:+[$extras]}"
[ "$profile" = core ] || [ "$torch" = none ] || install_torch
find "$venv" -maxdepth 1 -name ".sgqlm-*" ! -name "*-$key" -delete
rm -f "$log"
touch "$core_stamp"
[ "$profile" = core ] || touch "$dev_stamp"
say "ready after $SECONDS s"
