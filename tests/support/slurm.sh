#!/usr/bin/env bash
# A SLURM of one node on the loopback, for tests: `slurm.sh up <folder>` and `slurm.sh down <folder>`, as root on Debian or Ubuntu.
# Installs slurm-wlm, slurmdbd, munge and mariadb-server where they are missing. All files and sockets are in the folder; nothing is
# changed in /etc. `export SLURM_CONF=<folder>/slurm.conf` makes sbatch, squeue and sacct talk to it.
set -euo pipefail
what=${1:?up or down} folder=$(realpath -m "${2:?a folder}")
mark=.slurm-of-sentexp-tests # the folder is ours, and may be removed
say() { echo "slurm.sh: $*" >&2; }

down() {
    [ -e "$folder/$mark" ] || return 0
    for name in slurmd slurmctld slurmdbd mariadbd munged; do
        pid=$(cat "$folder/$name.pid" 2> /dev/null) || continue
        kill "$pid" 2> /dev/null || true
        for _ in $(seq 100); do kill -0 "$pid" 2> /dev/null || break; sleep 0.1; done
        kill -9 "$pid" 2> /dev/null || true
    done
    rm -rf "$folder"
}

install() {
    command -v slurmctld slurmd slurmdbd munged mariadbd > /dev/null && return
    [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null || { say "needs root on Debian or Ubuntu, or the packages slurm-wlm slurmdbd munge mariadb-server"; exit 3; }
    # Daemons that a package would start at once are not wanted.
    local policy=/usr/sbin/policy-rc.d made=
    [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' > $policy && chmod +x $policy && made=1; }
    apt-get update -q > "$folder/apt.log" 2>&1 || true
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends slurm-wlm slurmdbd munge mariadb-server >> "$folder/apt.log" 2>&1 ||
        { [ -z "$made" ] || rm $policy; say "the packages cannot be installed: $(tail -n 1 "$folder/apt.log")"; exit 3; }
    [ -z "$made" ] || rm $policy
}

wait_for() { # a command that succeeds in the end
    for _ in $(seq 100); do timeout 10 "$@" > /dev/null 2>&1 && return; sleep 0.2; done
    say "'$*' does not succeed:"; tail -n 5 "$folder"/*.log >&2; exit 1
}

start_database() {
    mkdir -p "$folder/database" "$folder/tmp"
    mariadb-install-db --no-defaults --user=root --auth-root-authentication-method=normal --datadir="$folder/database" --skip-test-db > "$folder/database.log" 2>&1
    mariadbd --no-defaults --user=root --datadir="$folder/database" --socket="$folder/database.socket" --skip-networking --tmpdir="$folder/tmp" \
        --pid-file="$folder/mariadbd.pid" --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 >> "$folder/database.log" 2>&1 &
    wait_for mariadb --no-defaults --user=root --socket="$folder/database.socket" --execute="CREATE DATABASE IF NOT EXISTS slurm_acct_db"
}

up() {
    down
    [ ! -e "$folder" ] || { say "$folder exists, and is not of this script"; exit 2; }
    mkdir -p "$folder"
    touch "$folder/$mark"
    install
    local node cpus memory cgroup port
    node=$(hostname -s) cpus=$(nproc) memory=$(($(grep MemTotal /proc/meminfo | tr -dc 0-9) / 1024 * 9 / 10)) port=${SLURM_TEST_PORT:-26817}
    cgroup=v1; [ "$(stat -fc %T /sys/fs/cgroup 2> /dev/null)" = cgroup2fs ] && cgroup=v2
    mkdir -p "$folder"/{state,spool,munge}
    dd if=/dev/urandom of="$folder/munge/key" bs=128 count=1 status=none
    chmod 600 "$folder/munge/key"; chown -R munge: "$folder/munge"; chmod 711 "$folder" "$folder/munge"
    runuser -u munge -- munged --key-file="$folder/munge/key" --socket="$folder/munge/socket" --log-file="$folder/munge/log" \
        --pid-file="$folder/munge/pid" --seed-file="$folder/munge/seed" --num-threads=2
    ln -s munge/pid "$folder/munged.pid"
    start_database
    cat > "$folder/slurmdbd.conf" << CONF
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
DbdHost=localhost
DbdPort=$((port + 2))
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
LogFile=$folder/slurmdbd.log
PidFile=$folder/slurmdbd.pid
CONF
    chmod 600 "$folder/slurmdbd.conf"
    cat > "$folder/slurm.conf" << CONF
ClusterName=test
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
InactiveLimit=0
KillWait=5
OverTimeLimit=0
MinJobAge=30
SchedulerParameters=batch_sched_delay=0,sched_interval=1
JobRequeue=1
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePass=$folder/munge/socket
AccountingStoragePort=$((port + 2))
NodeName=$node NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$node Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:8
CONF
    printf 'CgroupPlugin=cgroup/%s\nCgroupAutomount=no\n' "$cgroup" > "$folder/cgroup.conf"
    export SLURM_CONF="$folder/slurm.conf"
    MYSQL_UNIX_PORT="$folder/database.socket" slurmdbd 2>> "$folder/slurmdbd.log" || true
    wait_for sacctmgr --immediate --noheader show cluster
    sacctmgr --immediate --quiet add cluster test > /dev/null 2>&1 || true
    slurmctld -f "$folder/slurm.conf" -c
    slurmd -f "$folder/slurm.conf" -c
    wait_for sh -c "sinfo --noheader --format=%T | grep -q -E 'idle|mixed'"
    say "up: export SLURM_CONF=$folder/slurm.conf"
}

case $what in up) up ;; down) down ;; *) say "up or down, not '$what'"; exit 2 ;; esac
