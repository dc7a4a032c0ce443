#!/usr/bin/env bash
# A real Slurm on this one machine, on loopback only: two virtual nodes with toy GPUs, accounting, and
# everything it writes in one folder. Called again, it starts what has died meanwhile.
#   sudo tests/slurm/up.sh FOLDER      sudo tests/slurm/down.sh FOLDER
# It stops by itself when the process OWNER ends, if one is given, and after LIMIT seconds at the most.
# Where it can't be had it says why and exits with status 77. It never touches another Slurm.
set -euo pipefail
FOLDER=$(realpath --canonicalize-missing "${1:?usage: up.sh FOLDER}")
OWNER=${OWNER:-1} LIMIT=${LIMIT:-3600}
NODES=${NODES:-2} CPUS=${CPUS:-2} MEM=${MEM:-8000} GPUS=${GPUS:-2}
CONF=/etc/slurm/slurm.conf
HERE=$(cd "$(dirname "$0")" && pwd)

skip() { echo "no Slurm for tests: $1" >&2; exit 77; }
alive() { [ -s "$FOLDER/run/$1.pid" ] && kill -0 "$(cat "$FOLDER/run/$1.pid")" 2>/dev/null; }
until_true() { for _ in $(seq 300); do "$@" >/dev/null 2>&1 && return; sleep 0.2; done; return 1; }

# --- may it be here, and can it?
[ "$(id -u)" = 0 ] || skip "it takes root (toy GPUs are device files, and $CONF is a link to ours)"
# A link that leads nowhere is what a test killed together with its folder left behind.
[ -L $CONF ] && [ ! -e $CONF ] && rm $CONF
if [ -e $CONF ] && [ "$(readlink $CONF)" != "$FOLDER/slurm.conf" ]; then
  skip "$CONF is there, so another Slurm is or was in use"
fi
programs() { type -P munged slurmctld slurmd slurmdbd mariadbd mariadb-install-db; }
if ! programs >/dev/null; then
  command -v apt-get >/dev/null || skip "slurm-wlm, munge, slurmdbd, mariadb-server and apt-get are missing"
  install() {
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
      slurm-wlm munge slurmdbd mariadb-server >&2
  }
  # The packages would start daemons of their own.
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
  fi
  # A fresh container has no package lists.
  install || { apt-get update >&2 && install; } \
    || skip "apt-get could not install slurm-wlm, munge, slurmdbd and mariadb-server"
  programs >/dev/null || skip "the packages of this distribution lack a daemon"
fi

mkdir -p "$FOLDER"/{run,log,state,spool,dev}
# munged refuses a folder that others can't enter, and a key that others can read.
chmod 755 "$FOLDER" "$FOLDER/run"
mkdir -p -m 700 "$FOLDER/munge"

# --- configuration
if [ ! -s "$FOLDER/slurm.conf" ]; then
  HOST=$(hostname -s)
  # A GPU without a device file counts for nothing.
  for gpu in $(seq 0 $((GPUS - 1))); do
    mknod "$FOLDER/dev/gpu$gpu" c 1 3 || skip "device files can't be made here"
  done
  echo "NodeName=n[1-$NODES] Name=gpu Type=toy File=$FOLDER/dev/gpu[0-$((GPUS - 1))]" >"$FOLDER/gres.conf"
  cat >"$FOLDER/slurmdbd.conf" <<EOF
AuthType=auth/munge
AuthInfo=socket=$FOLDER/run/munge
DbdAddr=127.0.0.1
DbdHost=localhost
DbdPort=16819
SlurmUser=root
PidFile=$FOLDER/run/slurmdbd.pid
LogFile=$FOLDER/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
EOF
  # slurmdbd insists: its file could hold a password.
  chmod 600 "$FOLDER/slurmdbd.conf"
  cat >"$FOLDER/slurm.conf" <<EOF
ClusterName=toy
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=16817
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$FOLDER/run/munge
CredType=cred/munge
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool/%n
SlurmctldPidFile=$FOLDER/run/slurmctld.pid
SlurmdPidFile=$FOLDER/run/slurmd.%n.pid
SlurmctldLogFile=$FOLDER/log/slurmctld.log
SlurmdLogFile=$FOLDER/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5
ReturnToService=2
KillWait=5
# What a finished job asked for can be read until the end.
MinJobAge=7200
# Without cgroups: what takes more memory than it asked for is killed when next looked at.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=16819
AccountingStoragePass=$FOLDER/run/munge
AccountingStorageTRES=gres/gpu
GresTypes=gpu
NodeName=n[1-$NODES] NodeHostname=$HOST NodeAddr=127.0.0.1 Port=17001-$((17000 + NODES)) CPUs=$CPUS RealMemory=$MEM Gres=gpu:toy:$GPUS State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
fi
# Jobs lose SLURM_CONF on their way through the plugin, so the usual place has to lead here.
mkdir -p /etc/slurm
ln -sfn "$FOLDER/slurm.conf" $CONF

# --- it ends with its owner
if ! alive watch; then
  # shellcheck disable=SC2016
  setsid bash -c 'timeout "$1" tail --pid="$2" -f /dev/null; exec "$3" "$4"' \
    watch "$LIMIT" "$OWNER" "$HERE/down.sh" "$FOLDER" </dev/null >/dev/null 2>&1 &
  echo $! >"$FOLDER/run/watch.pid"
fi

# --- munge: a key and a socket of our own
[ -s "$FOLDER/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom >"$FOLDER/munge/key")
alive munged || munged --key-file="$FOLDER/munge/key" --seed-file="$FOLDER/munge/seed" \
  --log-file="$FOLDER/munge/log" --socket="$FOLDER/run/munge" --pid-file="$FOLDER/run/munged.pid"

# --- daemons
export MYSQL_UNIX_PORT="$FOLDER/db/socket"
if ! alive mariadbd; then
  [ -d "$FOLDER/db" ] || mariadb-install-db --no-defaults --user=root --datadir="$FOLDER/db" \
    --skip-test-db >"$FOLDER/log/mariadb-install.log" 2>&1
  chmod 700 "$FOLDER/db"
  # No password: no port is open, and only root can enter the folder of the socket.
  setsid mariadbd --no-defaults --user=root --datadir="$FOLDER/db" --socket="$MYSQL_UNIX_PORT" \
    --pid-file="$FOLDER/run/mariadbd.pid" --skip-networking --skip-grant-tables \
    --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 \
    </dev/null >"$FOLDER/log/mariadbd.log" 2>&1 &
  until_true mariadb-admin --no-defaults ping
fi
alive slurmdbd || SLURM_CONF="$FOLDER/slurm.conf" slurmdbd
until_true sacctmgr --noheader list cluster
sacctmgr --noheader list cluster format=cluster | grep -q toy || sacctmgr -i add cluster toy >/dev/null
alive slurmctld || slurmctld -f "$FOLDER/slurm.conf"
for n in $(seq "$NODES"); do
  mkdir -p "$FOLDER/spool/n$n"
  alive "slurmd.n$n" || slurmd -N "n$n" -f "$FOLDER/slurm.conf"
done

ready() { [ "$(sinfo -h -N -t idle,mixed,allocated -o %N | sort -u | wc -l)" = "$NODES" ]; }
until_true ready || { tail -n 20 "$FOLDER"/log/* >&2; exit 1; }
sinfo -N -o "%N %T %c %m %G"
