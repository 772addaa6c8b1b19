#!/usr/bin/env bash
# Training on a TPU slice of Google Cloud: from asking for it to deleting it. Run from a checkout of plum_jax.
#
# usage: tools/launch_tpu_vm.sh COMMAND --name=NAME --zone=ZONE [options] [-- PROGRAM ...]
#
# Commands
#   create   ask for a slice with a queued resource and wait until it is there (--type)
#   copy     copy the files of this checkout to all workers
#   install  install plum_jax with TPU support on all workers
#   run      start what follows -- on all workers, in the background: plum train ... --workdir=gs://BUCKET/RUN
#   status   the state of the slice, and of the program on every worker
#   logs     the last lines of the program on one worker (--worker, --lines), or all to come with --follow
#   stop     SIGTERM to the program on all workers: it saves and ends, and `run` goes on from there
#   delete   delete the slice
#   keep     create, copy, install and run, then watch until the program has finished: a slice that was taken away is
#            asked for again and the same command resumes there (--type, --poll, --retries)
#
# Options
#   --name=NAME             of the slice and its queued resource
#   --zone=ZONE             such as us-west4-a
#   --project=PROJECT       default: that of gcloud
#   --type=TYPE             accelerator type: v5litepod-16, v5p-64, v6e-64, v4-128
#   --runtime=VERSION       software version; default: the one for the type
#   --spot                  a cheaper slice that may be taken away at any moment
#   --reserved              from a reservation
#   --valid-until=DURATION  give up when the slice is not there after this time, such as 6h
#   --service-account=MAIL  of the workers; it needs read and write access to the bucket
#   --network=N, --subnetwork=N, --internal-ips
#   --worker=INDEX          for logs; default 0
#   --lines=N               for logs; default 50
#   --follow                for logs
#   --poll=SECONDS          between two looks in create and keep; default 60
#   --retries=N             in keep: how many failures of the program are tried again; default 3
#   --dry-run               print every command, run none; needs no gcloud
#   --help
set -euo pipefail

PROGRAM=launch_tpu_vm.sh
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
COMMANDS="create copy install run status logs stop delete keep"

# On the workers. Paths are relative to the home folder; what the program is given is quoted by `remote_run`.
# shellcheck disable=SC2016 # for the shell of the workers
REFUSE='if [ -f plum_run/pid ] && [ ! -f plum_run/exit ] && kill -0 "$(cat plum_run/pid)" 2>/dev/null; then
  echo "the program is running; stop it first" >&2; exit 3
fi'
UNPACK='rm -rf plum_jax.new && mkdir plum_jax.new && tar -xzf plum_jax.tgz -C plum_jax.new && rm -rf plum_jax && mv plum_jax.new plum_jax'
INSTALL='set -e; cd plum_jax
python3 -m pip install --quiet --user uv
test -x ../plum_env/bin/python || python3 -m uv venv --quiet --python 3.12 ../plum_env
python3 -m uv pip install --quiet --python ../plum_env/bin/python --constraint constraints.txt --editable ".[tpu,gcs]"
../plum_env/bin/plum --version'
# Every worker learns from the metadata server who the others are: name:id:address or address of each, with commas.
# shellcheck disable=SC2016
OTHERS='meta() { curl -sf -H "Metadata-Flavor: Google" "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"; }
workers=$(meta worker-network-endpoints) && number=$(meta agent-worker-number) || { echo "no answer of the metadata server" >&2; exit 1; }
first=${workers%%,*}; commas=${workers//[!,]/}
export JAX_NUM_PROCESSES=$((${#commas} + 1)) JAX_PROCESS_ID=$number JAX_COORDINATOR_ADDRESS=${first##*:}:8482'
# shellcheck disable=SC2016
OUTCOME='cd plum_run 2>/dev/null || { echo NONE; exit 0; }
if [ -f stopped ]; then echo STOPPED; elif [ -f exit ]; then echo "EXIT $(cat exit)"
elif kill -0 "$(cat pid)" 2>/dev/null; then echo RUNNING; else echo LOST; fi'
# shellcheck disable=SC2016
STOP='cd plum_run && touch stopped && kill -TERM "$(cat pid)"'

fail() {
  echo "$PROGRAM: error: $*" >&2
  exit 2
}

# Words -> one line that a shell reads as the same words.
quoted() {
  local word line=""
  for word in "$@"; do
    if [[ -z $word || $word =~ [^A-Za-z0-9_./:=@%+,-] ]]; then
      word="'${word//\'/\'\\\'\'}'"
    fi
    line+="$word "
  done
  printf '%s' "${line% }"
}

# Runs a command, or prints it in a dry run.
run() {
  if ((DRY_RUN)); then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

need() {
  local name
  for name in "$@"; do
    [[ -n ${!name} ]] || fail "$COMMAND needs --$(tr 'A-Z_' 'a-z-' <<<"$name")=...; see --help"
  done
}

# gcloud compute tpus WORDS... with the zone and the project.
tpus() {
  run gcloud compute tpus "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"}
}

on_workers() { # which workers, command for their shell
  tpus tpu-vm ssh "$NAME" --worker="$1" --command="$2"
}

runtime_of() { # accelerator type
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v4-* | v3-* | v2-*) echo tpu-ubuntu2204-base ;;
    v5e-*) fail "--type=$1: gcloud calls it v5litepod-${1#v5e-}; give that" ;;
    *) fail "--type=$1: its software version is not known; give --runtime=VERSION" ;;
  esac
}

# ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, FAILED, ...; MISSING when there is no queued resource, UNKNOWN when gcloud fails.
state() {
  local found
  if ((DRY_RUN)); then
    tpus queued-resources describe "$NAME" --format="value(state.state)" >&3
    echo ACTIVE
  elif found=$(tpus queued-resources describe "$NAME" --format="value(state.state)" 2>&1); then
    echo "${found##*$'\n'}"
  elif grep -qiE 'NOT_FOUND|not found' <<<"$found"; then
    echo MISSING
  else
    echo "$found" >&2
    echo UNKNOWN
  fi
}

create() {
  local now words=(queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" --runtime-version="$RUNTIME")
  ((!SPOT)) || words+=(--spot)
  ((!RESERVED)) || words+=(--reserved)
  ((!INTERNAL_IPS)) || words+=(--internal-ips)
  [[ -z $VALID_UNTIL ]] || words+=(--valid-until-duration="$VALID_UNTIL")
  [[ -z $SERVICE_ACCOUNT ]] || words+=(--service-account="$SERVICE_ACCOUNT")
  [[ -z $NETWORK ]] || words+=(--network="$NETWORK")
  [[ -z $SUBNETWORK ]] || words+=(--subnetwork="$SUBNETWORK")
  tpus "${words[@]}" || return
  while true; do
    now=$(state)
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING | MISSING)
        echo "$PROGRAM: $NAME is $now" >&2
        return 1
        ;;
    esac
    echo "$NAME: $now; looking again in $POLL s"
    sleep "$POLL"
  done
}

delete() {
  tpus queued-resources delete "$NAME" --force --quiet
}

copy() {
  local archive=${TMPDIR:-/tmp}/plum_jax.$NAME.tgz
  if ((!PACKED)); then # once: a program that is started again is the one that was started
    pack "$archive" || return
  fi
  PACKED=1
  tpus tpu-vm scp "$archive" "$NAME:plum_jax.tgz" --worker=all || return
  on_workers all "$REFUSE"$'\n'"$UNPACK"
}

pack() { # archive
  local files=() file
  while IFS= read -r -d '' file; do
    [[ ! -e $ROOT/$file ]] || files+=("$file") # a file that is deleted but not committed so is still listed
  done < <(git -C "$ROOT" ls-files -z --cached --others --exclude-standard)
  ((${#files[@]})) || fail "$ROOT is not a git checkout with files; run this from one"
  if ((DRY_RUN)); then
    echo "tar -czf $(quoted "$1") -C $(quoted "$ROOT") FILES # ${#files[@]}, those of git ls-files"
  else
    printf '%s\0' "${files[@]}" | tar -czf "$1" -C "$ROOT" --null -T -
  fi
}

install() {
  on_workers all "$INSTALL"
}

# The program outlives the connection; its pid, its log and at last its status lie in ~/plum_run of every worker.
# shellcheck disable=SC2016
remote_run() {
  local program start
  program=$(quoted "${WORDS[@]}")
  start='"$HOME/plum_jax/tools/run_stoppable.sh" "$@" & echo $! > pid; wait $!; echo $? > exit'
  printf '%s\n' "$REFUSE" "$OTHERS" 'mkdir -p plum_run && cd plum_run || exit 1' \
    'rm -f exit stopped pid; export PATH="$HOME/plum_env/bin:$PATH"' \
    "setsid nohup bash -c $(quoted "$start") plum $program >> log 2>&1 < /dev/null & sleep 1; cat pid"
}

start_program() {
  on_workers all "$(remote_run)"
}

# One word for all workers: RUNNING, DONE, AGAIN (stopped by the machine, or never started), STOPPED (by a person), FAILED,
# or AWAY when the workers cannot be reached.
outcome() {
  local lines
  if ((DRY_RUN)); then
    on_workers all "$OUTCOME" >&3
    echo DONE
    return
  fi
  lines=$(on_workers all "$OUTCOME" 2>/dev/null | grep -oE '(NONE|STOPPED|EXIT [0-9]+|RUNNING|LOST)$') || { echo AWAY && return; }
  if grep -q RUNNING <<<"$lines"; then
    echo RUNNING
  elif grep -q STOPPED <<<"$lines"; then
    echo STOPPED
  elif grep -qE 'NONE|LOST|EXIT 75' <<<"$lines"; then
    echo AGAIN
  elif grep -qvE '^EXIT 0$' <<<"$lines"; then
    echo FAILED
  else
    echo DONE
  fi
}

show_status() {
  local slice
  slice=$(state)
  ((DRY_RUN)) || echo "$NAME: $slice"
  on_workers all "$OUTCOME"
}

show_logs() {
  on_workers "$WORKER" "tail -n $LINES $( ((!FOLLOW)) || echo -F) plum_run/log"
}

# The slice that `keep` watches: asked for where there is none, again where it was taken away.
slice_again() { # its state
  case $1 in
    MISSING) create ;;
    FAILED | SUSPENDED | SUSPENDING)
      echo "$NAME: $1; asking for it again"
      delete && create
      ;;
    *) echo "$NAME: $1" ;;
  esac
}

program_again() {
  echo "$NAME: starting the program"
  copy && install && start_program
}

keep() {
  local failures=0 looked=0 watched=0 slice now
  if ((DRY_RUN)); then
    create
    program_again
  fi
  while true; do
    slice=$(state)
    [[ $slice != UNKNOWN ]] || ((looked)) || fail "gcloud cannot tell the state of $NAME, for the reason above"
    looked=1
    if [[ $slice != ACTIVE ]]; then
      slice_again "$slice" || echo "$NAME: no slice yet; trying again in $POLL s"
    else
      now=$(outcome)
      if ((!watched && !DRY_RUN)) && [[ $now =~ ^(DONE|FAILED|STOPPED)$ ]]; then
        now=AGAIN # of an earlier program
      fi
      case $now in
        DONE)
          echo "$NAME: the program has finished"
          return
          ;;
        STOPPED) fail "$NAME: the program was stopped by hand; the same command goes on" ;;
        FAILED)
          on_workers 0 "tail -n 20 plum_run/log" || true
          failures=$((failures + 1))
          ((failures <= RETRIES)) || fail "$NAME: the program failed $failures times; its last lines are above"
          echo "$NAME: the program failed; trying again ($failures of $RETRIES)"
          start_program || true
          ;;
        AGAIN) program_again || echo "$NAME: that did not work; trying again in $POLL s" ;;
        AWAY) echo "$NAME: the workers cannot be reached; trying again in $POLL s" ;;
      esac
      [[ $now == AWAY ]] || watched=1
    fi
    sleep "$POLL"
  done
}

main() {
  local argument name value
  COMMAND="" NAME="" ZONE="" PROJECT="" TYPE="" RUNTIME="" VALID_UNTIL="" SERVICE_ACCOUNT="" NETWORK="" SUBNETWORK=""
  WORKER=0 LINES=50 POLL=60 RETRIES=3 PACKED=0 SPOT=0 RESERVED=0 INTERNAL_IPS=0 FOLLOW=0 DRY_RUN=0 WORDS=()
  while (($#)); do
    argument=$1
    shift
    case $argument in
      --)
        WORDS=("$@")
        break
        ;;
      -h | --help)
        sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
        exit 0
        ;;
      --spot | --reserved | --internal-ips | --follow | --dry-run)
        name=$(tr 'a-z-' 'A-Z_' <<<"${argument#--}")
        printf -v "$name" 1
        ;;
      --name* | --zone* | --project* | --type* | --runtime* | --valid-until* | --service-account* | --network* | \
        --subnetwork* | --worker* | --lines* | --poll* | --retries*)
        name=${argument%%=*}
        [[ $name =~ ^--(name|zone|project|type|runtime|valid-until|service-account|network|subnetwork|worker|lines|poll|retries)$ ]] ||
          fail "$name is not an option; see --help"
        if [[ $argument == *=* ]]; then
          value=${argument#*=}
        else
          (($#)) && [[ $1 != --* ]] || fail "$name needs a value"
          value=$1
          shift
        fi
        [[ -n $value ]] || fail "$name is empty; give it a value"
        printf -v "$(tr 'a-z-' 'A-Z_' <<<"${name#--}")" %s "$value"
        ;;
      -*) fail "$argument is not an option; see --help" ;;
      *)
        [[ -z $COMMAND ]] || fail "$argument: one command at a time; what the workers run comes after --"
        COMMAND=$argument
        ;;
    esac
  done
  [[ -n $COMMAND ]] || fail "no command; give one of $COMMANDS"
  [[ " $COMMANDS " == *" $COMMAND "* ]] || fail "$COMMAND is not a command; give one of $COMMANDS"
  need NAME ZONE
  [[ $NAME =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || fail "--name=$NAME: use small letters, digits and hyphens, a letter first"
  for name in LINES POLL RETRIES; do
    [[ ${!name} =~ ^[0-9]+$ ]] || fail "--$(tr 'A-Z_' 'a-z-' <<<"$name")=${!name} is not a number"
  done
  [[ $WORKER =~ ^([0-9]+|all)$ ]] || fail "--worker=$WORKER is neither a number nor all"
  case $COMMAND in create | keep)
    need TYPE
    RUNTIME=${RUNTIME:-$(runtime_of "$TYPE")}
    ;;
  esac
  case $COMMAND in run | keep)
    ((${#WORDS[@]})) || fail "$COMMAND needs the program after --, such as -- plum train --workdir=gs://BUCKET/RUN"
    ;;
  esac
  ((DRY_RUN)) || command -v gcloud >/dev/null || fail "gcloud is not installed; see https://cloud.google.com/sdk/docs/install"
  exec 3>&1 # where a dry run prints inside $(...)
  case $COMMAND in
    run) start_program ;;
    status) show_status ;;
    logs) show_logs ;;
    stop) on_workers all "$STOP" ;;
    *) "$COMMAND" ;;
  esac
}

main "$@"
