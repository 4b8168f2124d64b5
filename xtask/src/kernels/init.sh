#!/busybox sh
# The first process of a guest kernel: loads modules, makes the host's root directory (read-only, by 9p) its own, and goes on there with
# /run/mesh/steps. The last line that it writes tells the host how it went.
export PATH=/
/busybox mkdir -p /proc /sys /dev /sysroot
/busybox mount -t proc proc /proc
/busybox mount -t sysfs sysfs /sys
/busybox mount -t devtmpfs dev /dev
for module in $(/busybox cat /modules/order); do
    /busybox insmod "/modules/$module" || echo "cannot load $module"
done
give_up() {
    echo "mesh-kernels: $1"
    echo "mesh-kernels: status 99"
    /busybox poweroff -f
}
/busybox mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 host /sysroot || give_up "the host's root cannot be mounted"
/busybox mount --move /proc /sysroot/proc
/busybox mount --move /sys /sysroot/sys
/busybox mount --move /dev /sysroot/dev
for place in /run /tmp /dev/shm; do
    /busybox mkdir -p "/sysroot$place" 2>/dev/null
    /busybox mount -t tmpfs tmpfs "/sysroot$place" || give_up "no tmpfs on $place"
done
/busybox mkdir -p /sysroot/dev/pts /sysroot/run/mesh
/busybox mount -t devpts devpts /sysroot/dev/pts
/busybox mount -t cgroup2 cgroup2 /sysroot/sys/fs/cgroup || give_up "no cgroup2"
/busybox mount -t bpf bpf /sysroot/sys/fs/bpf || give_up "no bpffs"
/busybox cp /steps /busybox /sysroot/run/mesh/
exec /busybox switch_root /sysroot /run/mesh/busybox sh /run/mesh/steps
