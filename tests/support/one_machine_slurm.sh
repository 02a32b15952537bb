#!/usr/bin/env bash
# A real SLURM cluster on one machine, for experiments: two nodes with 4 CPUs and two simulated GPUs each, with accounting.
#
#   tests/support/one_machine_slurm.sh start | stop | status
#
# Requires root on Debian or Ubuntu, without systemd. All files are in one folder and no daemon is shared, so several
# clusters can run in parallel. `stop` ends every process and keeps the folder; `start` restores accounts and queue from it,
# including the jobs that were running. It does nothing if the cluster is running.
#
#   SEMAIM_SLURM_DIR=/tmp/semaim-slurm   the folder
#   SEMAIM_SLURM_PORT=17817              the first of five ports: slurmctld, two slurmd, slurmdbd, MariaDB
#   SEMAIM_SLURM_ACCOUNTING=1            0 omits slurmdbd and MariaDB: `sacct` then has no data
#
# Partitions: main, the default; urgent, whose jobs preempt (requeue) those of main; short, at most five minutes.
set -euo pipefail

D=$(realpath -m "${SEMAIM_SLURM_DIR:-/tmp/semaim-slurm}")
PORT=${SEMAIM_SLURM_PORT:-17817}
ACCOUNTING=${SEMAIM_SLURM_ACCOUNTING:-1}
HOST=$(hostname -s)
PATH=$PATH:/usr/sbin:/sbin
unset "${!SLURM@}" "${!SBATCH@}"
export SLURM_CONF=$D/slurm.conf # all daemons and jobs inherit it; it distinguishes them from those of other clusters

start() {
    check
    names_resolve
    configure
    [ -s "$D/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom >"$D/munge.key")
    daemon munged --force --socket="$D/munged.socket" --key-file="$D/munge.key" --pid-file="$D/munged.pid" \
        --log-file="$D/log/munged.log" --seed-file="$D/munged.seed" --num-threads=2
    [ "$ACCOUNTING" != 1 ] || start_accounting
    daemon slurmctld
    daemon slurmd -N n1
    daemon slurmd -N n2
    until_it 30 nodes_ready || fail "the nodes do not come up; see $D/log"
    status
}

stop() {
    [ "$(id -u)" = 0 ] || fail "only root can stop a cluster"
    if [ -n "$(daemons 'slurmctld *')" ]; then # running jobs get SIGTERM, time to save, and are requeued
        {
            printf 'partitionname=%s state=down\n' main urgent short | xargs -L 1 scontrol update
            squeue -h -r -t running -o %A | xargs -r -n 1 scontrol requeue
            scancel -t running # jobs that cannot be requeued
            until_it 30 no_job_runs
        } >/dev/null 2>&1 || true
    fi
    end 'slurmctld *'
    end 'slurmd *'
    local pids name
    while pids=$(job_processes) && [ -n "$pids" ]; do
        xargs kill -KILL <<<"$pids" 2>/dev/null || true
        sleep 0.1
    done
    for name in slurmdbd mariadbd munged; do end "$name *"; done
}

status() {
    timeout 10 sinfo -o "%10P %11l %7t %9N %7c %8m %G" 2>/dev/null || fail "no cluster answers in $D"
    echo "export SLURM_CONF=$SLURM_CONF"
}

check() {
    local programs=(munged slurmctld slurmd) packages="slurm-wlm munge" missing=() name port
    if [ "$ACCOUNTING" = 1 ]; then
        programs+=(slurmdbd mariadbd)
        packages="slurm-wlm slurmdbd mariadb-server munge"
    fi
    for name in "${programs[@]}"; do type -P "$name" >/dev/null || missing+=("$name"); done
    [ ${#missing[@]} = 0 ] || fail "not installed: ${missing[*]}. As root:
    apt-get update && apt-get install -y --no-install-recommends $packages"
    [ "$(id -u)" = 0 ] || fail "only root can start a cluster"
    [[ ${#D} -le 80 && $D != *[[:space:]]* ]] || fail "SEMAIM_SLURM_DIR has more than 80 characters, or blanks: $D"
    [ -z "$(daemons '*')" ] || return 0
    for ((port = PORT; port < PORT + 5; port++)); do
        ! (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null ||
            fail "port $port is taken; with SEMAIM_SLURM_PORT=<port> it and the four after it are used"
    done
}

# torch.distributed resolves the name of a job's first node, and slurmctld the name of this machine.
names_resolve() {
    local name
    for name in "$HOST" n1 n2; do
        getent hosts "$name" >/dev/null || { echo "127.0.0.1 $name" >>/etc/hosts; } 2>/dev/null ||
            fail "$name is no known host and /etc/hosts cannot be written; a line '127.0.0.1 $name' is needed there"
    done
}

configure() {
    mkdir -p "$D"/{log,state,spool-n1,spool-n2}
    touch "$D/gpu0" "$D/gpu1" # without cgroups any file can be the device of a GPU
    echo "NodeName=n[1-2] Name=gpu File=$D/gpu[0-1]" >"$D/gres.conf"
    cat >"$D/slurm.conf" <<END
ClusterName=semaim
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=root
SlurmctldPort=$PORT
SlurmctldPidFile=$D/slurmctld.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdPidFile=$D/slurmd-%n.pid
SlurmdLogFile=$D/log/slurmd-%n.log
SlurmdSpoolDir=$D/spool-%n
StateSaveLocation=$D/state
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
# A requeued job waits until the credential of its last start has expired, by default 120 s.
AuthInfo=socket=$D/munged.socket,cred_expire=10
MpiDefault=none
SwitchType=switch/none
TaskPlugin=task/none
ProctrackType=proctrack/linuxproc
ReturnToService=2
# Short scheduling intervals; there are few jobs.
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
MinJobAge=300
OverTimeLimit=0
# Seconds from SIGTERM to SIGKILL for a job that is requeued, preempted, cancelled or out of time. (A GraceTime would only
# add an earlier SIGTERM, to the tasks alone.)
KillWait=15
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=n1 NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 1)) CPUs=4 RealMemory=8000 Gres=gpu:2
NodeName=n2 NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 2)) CPUs=4 RealMemory=8000 Gres=gpu:2
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
PartitionName=short Nodes=n1,n2 MaxTime=00:05:00 PriorityTier=1 PreemptMode=REQUEUE
END
    if [ "$ACCOUNTING" != 1 ]; then
        echo "AccountingStorageType=accounting_storage/none" >>"$D/slurm.conf"
        return
    fi
    cat >>"$D/slurm.conf" <<END
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 3))
AccountingStoragePass=$D/munged.socket
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
END
    (umask 077 && cat >"$D/slurmdbd.conf") <<END
AuthType=auth/munge
AuthInfo=socket=$D/munged.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((PORT + 3))
SlurmUser=root
LogFile=$D/log/slurmdbd.log
PidFile=$D/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((PORT + 4))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
END
    cat >"$D/accounting.sql" <<END
CREATE DATABASE IF NOT EXISTS slurm_acct_db;
CREATE USER IF NOT EXISTS slurm@'127.0.0.1' IDENTIFIED BY 'slurm';
GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1';
END
}

start_accounting() {
    [ -d "$D/mariadb/mysql" ] || mariadb-install-db --no-defaults --user=root --datadir="$D/mariadb" --skip-test-db \
        --auth-root-authentication-method=normal --innodb-log-file-size=8M >"$D/log/mariadb-install-db.out" 2>&1 ||
        fail "no database can be made for the accounts; see $D/log/mariadb-install-db.out"
    if [ -z "$(daemons 'mariadbd *')" ]; then
        setsid mariadbd --no-defaults --user=root --datadir="$D/mariadb" --socket="$D/mariadbd.socket" \
            --pid-file="$D/mariadbd.pid" --bind-address=127.0.0.1 --port=$((PORT + 4)) --init-file="$D/accounting.sql" \
            --innodb-log-file-size=8M --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 \
            --innodb-flush-log-at-trx-commit=2 </dev/null >>"$D/log/mariadbd.log" 2>&1 &
    fi
    until_it 30 mariadb-admin --no-defaults --user=root --socket="$D/mariadbd.socket" ping ||
        fail "MariaDB does not answer; see $D/log/mariadbd.log"
    daemon slurmdbd
    until_it 30 sacctmgr -n list cluster || fail "slurmdbd does not answer; see $D/log/slurmdbd.log"
    [ -n "$(sacctmgr -n list cluster semaim)" ] || sacctmgr -i add cluster semaim >/dev/null
}

nodes_ready() {
    local node
    for node in $(sinfo -h -N -t drain,down -o %N | sort -u); do # left in state/ by an earlier start
        scontrol update nodename="$node" state=resume
    done
    [ "$(sinfo -h -N -t idle,mix,alloc -o %N | sort -u | wc -l)" = 2 ]
}

# Process ids of all processes with this cluster's SLURM_CONF in their environment, such as its users' shells.
processes() {
    grep -slzxF "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ | cut -d/ -f3
}

# daemons PATTERN: ids of this cluster's daemons whose name and command line match it.
daemons() {
    local pid line
    for pid in $(processes); do
        line=$(cat "/proc/$pid/comm" 2>/dev/null && tr '\0' ' ' <"/proc/$pid/cmdline") || continue
        line=${line/$'\n'/ }
        [[ $line =~ ^(munged|mariadbd|slurmdbd|slurmctld|slurmscriptd|slurmd)\  ]] || continue
        # shellcheck disable=SC2053
        [[ $line != $1 ]] || echo "$pid"
    done
}

# Ids of processes started by jobs, and of their slurmstepd.
job_processes() {
    local pid
    for pid in $(processes); do
        if grep -sqx slurmstepd "/proc/$pid/comm" || grep -sqz '^SLURMD_NODENAME=' "/proc/$pid/environ"; then
            echo "$pid"
        fi
    done
}

no_job_runs() {
    [ -z "$(squeue -h -t running,completing)" ]
}

# daemon NAME OPTION...: start the daemon unless it is running.
daemon() {
    [ -z "$(daemons "$1 *${*:2}*")" ] || return 0
    "$@" </dev/null >"$D/log/$1.out" 2>&1 || fail "$1 does not start: $(tail -n 3 "$D/log/$1.out")"
}

# end PATTERN: end daemons, with SIGKILL after 20 s.
end() {
    local pids
    pids=$(daemons "$1")
    [ -n "$pids" ] || return 0
    xargs kill -TERM <<<"$pids" 2>/dev/null || true
    until_it 20 gone "$1" || xargs kill -KILL <<<"$pids" 2>/dev/null || true
}

gone() {
    [ -z "$(daemons "$1")" ]
}

# until_it SECONDS COMMAND...: repeat until the command succeeds.
until_it() {
    local deadline=$((SECONDS + $1))
    until "${@:2}" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

fail() {
    echo "one_machine_slurm.sh: $*" >&2
    exit 1
}

case "${1:-}" in
start | stop | status) "$1" ;;
*)
    sed -n '2,/^set/{/^#/p}' "$0"
    exit 2
    ;;
esac
