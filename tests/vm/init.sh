#!/bin/busybox sh
# The guest's process 1, in two stages. Stage 1 runs in the initramfs: it inserts the modules, mounts
# the host's file tree read-only over 9p, and switches to it, so that paths in the guest are the
# host's. Stage 2 mounts the kernel's file systems, runs one command, and powers off.
#
# Files in the share (/run/guest/share, writable, seen by the host at once):
#   settings   shell assignments: DIRECTORY, KEEP (host paths to keep visible below the tmpfs mounts)
#   command    the script to run     output   its standard output and error     status   its exit status

stage1() {
    /bin/busybox mkdir -p /bin /proc /newroot /host
    /bin/busybox --install -s /bin
    export PATH=/bin
    mount -t proc proc /proc
    for module in /modules/*; do insmod "$module" || echo "guest: insmod $module failed"; done
    mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=loose,access=any host /newroot || poweroff -f
    # The host's own /tmp and /run stay reachable through this second view, for KEEP.
    mount --bind /newroot /host
    for place in tmp run var/tmp; do mount -t tmpfs -o mode=1777 tmpfs /newroot/$place; done
    mount -t devtmpfs devtmpfs /newroot/dev
    mkdir -p /newroot/run/guest/share
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none,access=any share /newroot/run/guest/share || poweroff -f
    . /newroot/run/guest/share/settings
    for path in $KEEP; do
        mkdir -p "/newroot$path" && mount --bind "/host$path" "/newroot$path"
    done
    umount -l /host
    cp /bin/busybox /init /newroot/run/guest/
    umount -l /proc
    exec switch_root /newroot /run/guest/busybox sh /run/guest/init stage2
}

stage2() {
    busybox=/run/guest/busybox
    share=/run/guest/share
    $busybox mount -t proc proc /proc
    $busybox mount -t sysfs sysfs /sys
    $busybox mount -t bpf bpf /sys/fs/bpf
    $busybox mount -t cgroup2 cgroup2 /sys/fs/cgroup
    $busybox mount -t securityfs securityfs /sys/kernel/security
    $busybox mount -t tracefs tracefs /sys/kernel/tracing
    $busybox mkdir -p /dev/pts /dev/shm /tmp/home
    $busybox mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
    $busybox mount -t tmpfs tmpfs /dev/shm
    $busybox ln -sf /proc/self/fd /dev/fd
    $busybox ln -sf fd/0 /dev/stdin
    $busybox ln -sf fd/1 /dev/stdout
    $busybox ln -sf fd/2 /dev/stderr
    $busybox ifconfig lo up
    $busybox hostname guest
    . $share/settings
    export HOME=/tmp/home LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 TERM=dumb
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    cd "$DIRECTORY" || cd /
    : >$share/started
    # A guest that still runs says so; the host gives one up that has fallen silent.
    while $busybox sleep 5; do $busybox date >$share/heartbeat; done &
    $busybox setsid /bin/sh $share/command </dev/null >>$share/output 2>&1
    echo $? >$share/status.part
    # The name appears when the content is complete.
    $busybox mv $share/status.part $share/status
    $busybox sync
    $busybox poweroff -f
}

case "$1" in
    stage2) stage2 ;;
    *) stage1 ;;
esac
