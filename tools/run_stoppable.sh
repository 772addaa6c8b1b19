#!/usr/bin/env bash
# Runs a command. SIGTERM is passed on to it (and for Ctrl-C), and a run that was stopped so ends with 75 instead of 0: "try again".
#
#   tools/run_stoppable.sh plum train --config=... --workdir=...
#
# `plum train` saves after SIGTERM and ends with 0, as a person wants it. What restarts it (SLURM, Kubernetes,
# launch_tpu_vm.sh) has to know whether the training is finished or was stopped; this is how it is told.
set -euo pipefail

if [[ $# -eq 0 || $1 == --help || $1 == -h ]]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0"
  exit $(($# == 0 ? 2 : 0))
fi

child="" stopped=0
stop() {
  stopped=1
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
}
trap stop TERM INT # a shell starts what runs in the background deaf to SIGINT
"$@" &
child=$!
((!stopped)) || stop # it came before there was anything to pass it on to

code=0
while true; do
  code=0
  wait "$child" || code=$?
  kill -0 "$child" 2>/dev/null || break # it has ended; otherwise a signal ended the wait
done
last=0
wait "$child" 2>/dev/null || last=$? # a signal and the end may have come together; 127: the status was taken already
if ((last != 127)); then
  code=$last
fi
if ((stopped && code == 0)); then
  code=75
fi
exit "$code"
