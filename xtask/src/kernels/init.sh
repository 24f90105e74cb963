#!/bin/busybox sh
# The guest's first process: makes the place in which tests can run, and runs those of /plan. They write to the second
# serial line, of which `cargo xtask kernels` reads; the kernel has the first one to itself.
/bin/busybox --install -s /bin
# iproute2 before busybox's own.
export PATH=/sbin:/bin

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir /dev/pts
mount -t devpts devpts /dev/pts
mount -t tmpfs tmp /tmp
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 none /sys/fs/cgroup
exec >/dev/ttyS1 2>&1

echo "guest: $(uname -r)"
for module in /modules/*.ko; do
    insmod "$module"
done
ip link set lo up
while read -r test; do
    # One at a time: the emulation is slow enough as it is.
    /tests/$test --test-threads=1 --nocapture --exact
done </plan
echo "guest: done"
poweroff -f
