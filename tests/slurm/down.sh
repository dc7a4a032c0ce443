#!/usr/bin/env bash
# Stops what up.sh started in a folder: by process id, and nothing else.
set -uo pipefail
FOLDER=$(realpath --canonicalize-missing "${1:?usage: down.sh FOLDER}")
CONF=/etc/slurm/slurm.conf

stop() {
  local file="$FOLDER/run/$1.pid" pid
  [ -s "$file" ] || return 0
  pid=$(cat "$file")
  kill "$pid" 2>/dev/null
  for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.2; done
  kill -9 "$pid" 2>/dev/null
  rm -f "$file"
}

# Not the watchdog that is running this.
[ "$(cat "$FOLDER/run/watch.pid" 2>/dev/null)" = $$ ] || stop watch
if [ "$(readlink $CONF)" = "$FOLDER/slurm.conf" ]; then
  # Jobs first: their processes outlive slurmd.
  timeout 10 scancel --full --signal=KILL --state=RUNNING --user=root 2>/dev/null
  timeout 10 scancel --user=root 2>/dev/null
  for _ in $(seq 50); do [ -z "$(timeout 10 squeue -h -t running,completing 2>/dev/null)" ] && break; sleep 0.2; done
fi
for pid in "$FOLDER"/run/slurmd.*.pid; do stop "$(basename "$pid" .pid)"; done
for name in slurmctld slurmdbd mariadbd munged; do stop $name; done
[ "$(readlink $CONF)" = "$FOLDER/slurm.conf" ] && rm -f $CONF
exit 0
