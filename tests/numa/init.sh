#!/bin/sh
# The first and only process of the virtual machine: does what the test looks at, prints it in sections, switches off.
#   @@ begin NAME … @@ end NAME STATUS
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin HOME=/root OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 TMPDIR=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs tmp /tmp
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cg /cg
echo "+cpu +cpuset +memory" >/cg/cgroup.subtree_control
ifconfig lo 127.0.0.1 up
hostname vm
ln -s /proc/self/fd /dev/fd
M=/model.gguf
IDS=1,17,33,4,99,1000,7

section() { # NAME COMMAND…
    local name=$1
    shift
    echo "@@ begin $name"
    "$@" 2>&1
    echo "@@ end $name $?"
}
group() { mkdir -p /cg/"$1"; } # NAME
inside() { # GROUP COMMAND…
    local g=$1
    shift
    sh -c 'echo $$ >/cg/'"$g"'/cgroup.procs; exec "$@"' sh "$@"
}

# Where a process's threads may run, and where its memory lies.
look() { # PID
    for t in /proc/"$1"/task/*; do
        echo "thread $(cat "$t"/comm | tr ' ' _) $(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' "$t"/status)"
    done
    grep -E '(muster-weights|prefer|bind|anon|stack|heap).*N[0-9]+=' /proc/"$1"/numa_maps | grep -v 'file=/\(usr/\)*lib' | sed 's/^/map /'
}
ranks() { ps -o pid,args | grep '[_]rank' | grep -v mpirun | grep -v '_launch' | awk '{print $1}'; }
serve() { # GROUP
    local g=$1
    : >/tmp/serve.log
    # not by `inside`: the process that is told to end must be the server itself
    sh -c 'echo $$ >/cg/'"$g"'/cgroup.procs; exec muster serve "$@"' sh $M --quiet --ctx 256 --parallel 2 --stall-ms 60000 \
        --listen 127.0.0.1:7400 >/tmp/serve.log 2>&1 &
    serve_pid=$!
    wait_ready 0
}
# The log is read, not `muster ps` asked: starting a program with a hundred libraries takes seconds here.
epochs() { grep -c "is ready after" /tmp/serve.log; }
wait_ready() { # EPOCHS that have been ready before
    local i=0
    while [ $i -lt 400 ]; do
        [ "$(epochs)" -gt "$1" ] && return 0
        i=$((i + 1))
        sleep 0.5
    done
    echo "not ready after 200 s"
    cat /tmp/serve.log
    return 1
}
kill_rank() {
    before=$(epochs)
    kill -9 "$(ranks | head -n 1)"
}
stop() {
    kill $serve_pid
    wait $serve_pid
    cat /tmp/serve.log
    [ -z "$(ranks)" ]
}
ANSWER="--raw -n 6 --ignore-end -T 0 --quiet"
answer() { muster run $M 'one two three' $ANSWER "$@" 2>/tmp/errors || cat /tmp/errors; } # no progress bars
ask() { answer --server 127.0.0.1:7400; }
gang() { # the state of the gang that serves
    muster ps
    for p in $(ranks); do
        echo "rank-process $p"
        look $p
    done
}

# ---- the whole machine ----
group all
sleep 3 # until the kernel has settled on a clock
section clock cat /sys/devices/system/clocksource/clocksource0/current_clocksource
section plan muster plan $M --ctx 256 --parallel 2
section alone muster logits $M --ids $IDS --split 1 --threads 2 --out /tmp/one.f32
section two muster logits $M --ids $IDS --split 1:1 --out /tmp/two.f32
section sums sha256sum /tmp/one.f32 /tmp/two.f32
section run answer
section run_alone answer --split 1

section serve serve all
section ask ask
section gang gang
# A rank dies; the next epoch maps what this one packed.
kill_rank
section relaunch wait_ready "$before"
section ask_again ask
section gang_again gang
# The same after the worker has lost the first node's cores: what was packed there moves.
echo 2-3 >/cg/all/cpuset.cpus
kill_rank
section narrowed wait_ready "$before"
section ask_narrowed ask
section gang_narrowed gang
section stop stop
echo 0-3 >/cg/all/cpuset.cpus

# ---- threads for ranks, in one process ----
muster run $M 'one two three' --raw -n 60 --ignore-end -T 0 --quiet --ctx 256 >/tmp/local.txt 2>&1 &
local_pid=$!
while [ ! -s /tmp/local.txt ] && kill -0 $local_pid 2>/dev/null; do sleep 0.1; done
section local look $local_pid
wait $local_pid

# ---- one node's cores and memory ----
group one
echo 2-3 >/cg/one/cpuset.cpus
echo 1 >/cg/one/cpuset.mems
section plan_one inside one muster plan $M --ctx 256 --parallel 2
section serve_one serve one
section ask_one ask
section gang_one gang
section stop_one stop

# ---- a quota of two CPUs, then of one ----
group quota
echo "200000 100000" >/cg/quota/cpu.max
section serve_quota serve quota
section ask_quota ask
section gang_quota gang
section stop_quota stop
echo "100000 100000" >/cg/quota/cpu.max
section plan_quota inside quota muster plan $M --ctx 256 --parallel 2

# ---- what is told ----
section bench muster bench $M --prompt 16 --decode 4 --repeat 1
echo "@@ done"
poweroff -f
