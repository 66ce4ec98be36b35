#!/usr/bin/env bash
# vm.sh COMMAND…: runs a command as root in a small virtual machine with Debian's stock kernel, and exits
# with its status. What users run is the kernel's datapath, and the machine at hand may not have it.
#
# The guest sees this machine's / read-only under a tmpfs, so everything built here is there too; what the
# command writes to /out appears in $OUT (default: a directory that is removed). There is no KVM needed and
# none used: correctness only, time means nothing in there. The kernel's package is fetched once into
# ${XDG_CACHE_HOME:-~/.cache}/twill/kernel.
#
#   VM_SMP, VM_MEMORY (MiB), VM_TIMEOUT (seconds)
set -euo pipefail

die() { echo "vm: $*" >&2; exit 125; }
[ $# -gt 0 ] || die "usage: vm.sh COMMAND…"
[ "$(id -u)" -eq 0 ] || die "the guest's / is this machine's, and reading all of it needs root"

missing=()
while read -r tool package; do
  command -v "$tool" >/dev/null || [ -x "/usr/sbin/$tool" ] || missing+=("$package")
done <<'TOOLS'
qemu-system-x86_64 qemu-system-x86
busybox busybox-static
cpio cpio
depmod kmod
TOOLS
if [ ${#missing[@]} -gt 0 ]; then
  echo "vm: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
    { apt-get update -q && apt-get install -y -q --no-install-recommends "${missing[@]}"; } >/dev/null || die "apt-get could not install ${missing[*]}"
fi

# The kernel, unpacked beside its package; nothing of it is installed on this machine. The cloud flavour has no 9p.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/twill/kernel
mkdir -p "$cache"
package=$(apt-cache depends linux-image-amd64 | awk '/Depends:/ {print $2; exit}')
[ -n "$package" ] || { apt-get update -q >/dev/null; package=$(apt-cache depends linux-image-amd64 | awk '/Depends:/ {print $2; exit}'); }
[ -n "$package" ] || die "the package index has no linux-image-amd64"
release=${package#linux-image-}
root=$cache/$release
if [ ! -e "$root/complete" ]; then
  rm -rf "$root" && mkdir -p "$root"
  (cd "$root" && apt-get download -q "$package" >/dev/null && dpkg-deb -x "$package"_*.deb . && rm "$package"_*.deb)
  depmod -b "$root" "$release"
  touch "$root/complete"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
out=${OUT:-$work/out}
mkdir -p "$out"

# First stage, in the initial ramdisk: mount this machine's / and go there.
ram=$work/ram
mkdir -p "$ram"/{bin,modules,proc,sys,dev,host,layer,root}
cp "$(command -v busybox)" "$ram/bin/busybox"
n=100
for m in virtio_pci 9pnet_virtio 9p overlay; do
  modprobe -d "$root" -S "$release" -n --show-depends "$m"
done | awk '$1 == "insmod" && !seen[$2]++ {print $2}' | while read -r file; do
  cp "$file" "$ram/modules/$((n++))-$(basename "$file")"
done
cat >"$ram/init" <<'STAGE'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
for file in /modules/*; do $b insmod "$file"; done
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,ro,cache=loose host /host || $b poweroff -f
$b mount -t tmpfs layer /layer; $b mkdir /layer/upper /layer/work
$b mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work root /root || $b poweroff -f
for d in proc sys dev; do $b mkdir -p /root/$d; $b mount --move /$d /root/$d; done
$b mkdir -p /root/out
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=none out /root/out || $b poweroff -f
exec $b switch_root /root /bin/bash /out/.second
STAGE
chmod +x "$ram/init"
(cd "$ram" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/ramdisk"

# Second stage, in the guest's /: what a boot would have mounted and loaded, then the command.
{
  cat <<STAGE
export PATH=$PATH HOME=/root TERM=dumb LANG=C.UTF-8
mkdir -p /lib/modules/$release
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,ro,cache=loose modules /lib/modules
STAGE
  cat <<'STAGE'
mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /tmp; mkdir -p /dev/pts /dev/shm /run/netns
mount -t devpts devpts /dev/pts; mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control; done
ln -sf /proc/self/fd /dev/fd
for m in openvswitch vport-geneve vport-vxlan geneve vxlan veth tun bridge nf_conntrack nf_nat nft_ct nft_masq nft_nat nft_chain_nat nft_reject_inet; do
  modprobe -q $m || echo "vm: the kernel has no module $m"
done
ip link set lo up
echo "vm: Linux $(uname -r) is up"
STAGE
  printf 'cd %q\n' "$PWD"
  printf '%q ' "$@"
  cat <<'STAGE'

status=$?
echo $status >/out/.status
echo "vm: exit status $status after $(cut -d. -f1 /proc/uptime) s"
sync
echo o >/proc/sysrq-trigger
sleep 60
STAGE
} >"$out/.second"
rm -f "$out/.status"

timeout "${VM_TIMEOUT:-1800}" qemu-system-x86_64 -M pc -accel tcg,thread=multi -cpu max,la57=off \
  -smp "${VM_SMP:-2}" -m "${VM_MEMORY:-3072}" -nodefaults -no-reboot -display none -serial stdio \
  -kernel "$root/boot/vmlinuz-$release" -initrd "$work/ramdisk" \
  -append "console=ttyS0 quiet loglevel=3 mitigations=off nokaslr nowatchdog panic=-1" \
  -fsdev "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap" -device virtio-9p-pci,fsdev=host,mount_tag=host \
  -fsdev "local,id=modules,path=$root/lib/modules,security_model=none,readonly=on" -device virtio-9p-pci,fsdev=modules,mount_tag=modules \
  -fsdev "local,id=out,path=$out,security_model=none" -device virtio-9p-pci,fsdev=out,mount_tag=out </dev/null || true
[ -e "$out/.status" ] || die "the guest ended without telling how the command did"
exit "$(cat "$out/.status")"
