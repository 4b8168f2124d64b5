#!/busybox sh
# The first process of a guest kernel: loads modules, makes the host's root directory (read-only, by 9p) its own, and goes on there with
# /run/mesh/steps. The last line that it writes tells the host how it went.
export PATH=/
/busybox mkdir -p /proc /sys /dev /root
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
/busybox mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 host /root || give_up "the host's root cannot be mounted"
/busybox mount --move /proc /root/proc
/busybox mount --move /sys /root/sys
/busybox mount --move /dev /root/dev
for place in /run /tmp /dev/shm; do
    /busybox mkdir -p "/root$place" 2>/dev/null
    /busybox mount -t tmpfs tmpfs "/root$place" || give_up "no tmpfs on $place"
done
/busybox mkdir -p /root/dev/pts /root/run/mesh
/busybox mount -t devpts devpts /root/dev/pts
/busybox mount -t cgroup2 cgroup2 /root/sys/fs/cgroup || give_up "no cgroup2"
/busybox mount -t bpf bpf /root/sys/fs/bpf || give_up "no bpffs"
/busybox cp /steps /busybox /root/run/mesh/
exec /busybox switch_root /root /run/mesh/busybox sh /run/mesh/steps
