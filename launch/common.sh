# shellcheck shell=bash
# What the launchers share: arguments, quoting, --print and waiting. Sourced, never run.
# shellcheck disable=SC2034,SC2154  # variables of the scripts that source this file
[ "${BASH_VERSINFO[0]}" -ge 4 ] || {
  echo "bash 4 or newer is needed, this is $BASH_VERSION" >&2
  exit 6
}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
program=${0##*/}
preempted=75 # exit code of a run that was stopped and has saved: start it again
lost=255     # exit code of ssh when the connection broke
words=()
dry=""

say() { echo "$program: $*" >&2; }

fail() { # message [exit code]
  say "$1"
  [ "${2:-2}" != 2 ] || say "see $program --help"
  exit "${2:-2}"
}

show_help() { # the comment at the head of the script
  awk 'NR > 1 && !/^#/ { exit } NR > 1 && !/^#SBATCH/ { sub(/^# ?/, ""); print }' "$0"
  exit 0
}

# Read `--name value`, `--name=value` and switches into variables (`--max-hours` into max_hours);
# what follows `--` goes into words. Names that are not in the two lists are refused.
parse() { # "names with a value" "switches" arguments...
  local values=" $1 " switches=" $2 " word key
  shift 2
  while [ $# -gt 0 ]; do
    word=$1
    shift
    case $word in
      --)
        words=("$@")
        break
        ;;
      -h | --help) show_help ;;
      --print) dry=1 ;;
      --?*)
        key=${word%%=*}
        key=${key#--}
        case "$values|$switches" in
          *" $key "*"|"*)
            if [ "$word" = "--$key" ]; then
              [ $# -gt 0 ] || fail "--$key needs a value"
              word=--$key=$1
              shift
            fi
            printf -v "${key//-/_}" %s "${word#*=}"
            ;;
          *"|"*" $key "*)
            [ "$word" = "--$key" ] || fail "--$key takes no value"
            printf -v "${key//-/_}" 1
            ;;
          *) fail "unknown argument $word" ;;
        esac
        ;;
      *) fail "unknown argument $word; the words of sgqlm train stand after --" ;;
    esac
  done
}

need() { # variables of options that must not be empty
  local variable
  for variable in "$@"; do
    [ -n "${!variable:-}" ] || fail "--${variable//_/-} is missing"
  done
}

need_number() { # variables of options that must be whole numbers
  local variable
  for variable in "$@"; do
    case ${!variable} in
      "" | *[!0-9]*) fail "--${variable//_/-} must be a whole number, not '${!variable}'" ;;
    esac
  done
}

# Make the command of the run: `train` is `sgqlm train` with the work directory and the user's words.
make_train() {
  local word
  need workdir
  check_folder "$workdir"
  [ ${#words[@]} -gt 0 ] || fail "the words of sgqlm train are missing: -- --config=FILE.py"
  for word in "${words[@]}"; do
    case $word in
      --config.train.workdir | --config.train.workdir=*)
        fail "give the work directory as --workdir, the logs go there too"
        ;;
    esac
  done
  train=(sgqlm train "--config.train.workdir=$workdir" "${words[@]}")
}

check_folder() { # a checkpoint gets its name by renaming a folder, which a bucket's address cannot do
  case $1 in
    *://*) fail "--workdir $1 is not a folder; mount the bucket (--bucket NAME) and give a folder in it" ;;
  esac
}

quote() { # words as a shell reads them back
  local text
  printf -v text '%q ' "$@"
  echo "${text% }"
}

run() { # command...: run it, or only show it
  if [ -n "$dry" ]; then
    quote "$@"
  else
    "$@"
  fi
}

# Wait for a process whatever signals arrive, and give its exit code in `code`.
wait_for() { # process
  code=0
  wait "$1" || code=$?
  while [ -n "$interrupted" ]; do
    interrupted=""
    code=0
    wait "$1" || code=$?
  done
}

# Note a signal in `stopped` and call `on_signal NAME`, which the script defines.
catch_signals() {
  stopped="" interrupted=""
  trap 'stopped=TERM interrupted=1; on_signal TERM' TERM
  trap 'stopped=INT interrupted=1; on_signal INT' INT
}

# Run a function until it does not end with 75 (or, over ssh, with a lost connection).
retry() { # times function...
  local left=$1
  shift
  while :; do
    code=0
    "$@" || code=$?
    case $code in "$preempted" | "$lost") ;; *) return "$code" ;; esac
    if [ -n "${stopped:-}" ] || [ "$left" -eq 0 ]; then
      return "$code"
    fi
    left=$((left - 1))
    say "the run ended with $code; starting it again ($left more times)"
  done
}
