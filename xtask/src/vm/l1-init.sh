#!/bin/busybox sh
# /init of the emulated hypervisor (L1). @NAMES@ are filled in by image.rs.
# Mounts the build machine's root read-only, makes it habitable, and runs the checks chrooted into it.
/bin/busybox --install -s /bin
export PATH=/bin
say() { echo "davy-vm: $*"; }
fail() { say "failed: $*"; poweroff -f; }

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in @MODULES@; do
    insmod "/modules/$module.ko" || fail "kernel module $module could not be inserted"
done
ifconfig lo 127.0.0.1 up
[ -c /dev/kvm ] || fail "kvm-amd offers no /dev/kvm"

nine="trans=virtio,version=9p2000.L,msize=524288"
mount -t 9p -o "$nine,cache=loose,ro" hostroot /host || fail "the build machine's root could not be mounted"
mount -t tmpfs mnt /host/mnt || fail "no tmpfs"
mkdir /host/mnt/in /host/mnt/out
# Before /tmp is covered: the directory may lie there.
mount --bind "/host@STAGE@" /host/mnt/in || fail "the programs to test could not be mounted"
mount -t 9p -o "$nine,cache=none" out /host/mnt/out || fail "the directory for results could not be mounted"

mount -t proc proc /host/proc
mount -t sysfs sysfs /host/sys
mount -t devtmpfs dev /host/dev
mkdir -p /host/dev/shm
ln -sf /proc/self/fd /host/dev/fd
mount -t tmpfs shm /host/dev/shm
mount -t tmpfs tmp /host/tmp
mount -t tmpfs run /host/run
mount -t debugfs debugfs /host/sys/kernel/debug
mount -t tracefs tracefs /host/sys/kernel/tracing
mount -t securityfs securityfs /host/sys/kernel/security
mount -t bpf bpf /host/sys/fs/bpf
mount -t cgroup2 cgroup2 /host/sys/fs/cgroup

say "hypervisor up: $(uname -r)"
chroot /host /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp RUST_BACKTRACE=1 \
    /mnt/in/davy-vm-checks --programs /mnt/in --guest-kernel /mnt/in/guest-vmlinuz \
    --guest-initrd /mnt/in/guest-initrd --logs /mnt/out
say "checks ended with $?"
dmesg > /host/mnt/out/dmesg.log
sync
poweroff -f
