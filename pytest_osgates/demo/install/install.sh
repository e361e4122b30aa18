#!/bin/sh
# Installs the live system that was started from this medium. Nobody is asked anything, no network is needed:
#
#     sh install DISK <FILE-WITH-THE-PASSPHRASE
#
# All of DISK, which must be empty, becomes an EFI system partition and a LUKS2 volume with the live root in it. The
# passphrase opens it, and so does the recovery key that is written here. The installed system's first boot asks for the
# passphrase once more, and has the machine's TPM open the disk from then on. Programs that the live system lacks come
# from tools.squashfs beside this file. Boot files are written last: what stops half-way starts nothing.
set -eu
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
# There are no udev rules for device-mapper: it makes its own nodes.
export DM_DISABLE_UDEV=1
umask 077

name=osgates-demo
medium=/run/live/medium
work=/run/osgates-install
tools=$work/tools
esp=$work/esp
root=$work/root
initrd=$work/initrd
volume=osgates-install
opened='' written='' finished=''

step() {
    echo "$name: $*"
}
fail() {
    echo "$name: failed: $*" >&2
    exit 1
}
use() {
    program=$1
    shift
    LD_LIBRARY_PATH=$tools "$tools/$program" "$@"
}
# Nothing that starts is left of what did not end well: neither table, nor the EFI system partition's first sectors.
spoil() {
    dd if=/dev/zero of="$disk" bs=1M count=2 conv=fsync status=none || return 1
    dd if=/dev/zero of="$disk" bs=1M count=1 seek=$((mib - 1)) conv=fsync status=none
}
leave() {
    status=$?
    trap '' HUP INT TERM
    trap - EXIT
    for place in "$esp" "$root"; do
        ! mountpoint -q "$place" || umount "$place" || status=1
    done
    [ -z "$opened" ] || use cryptsetup close "$volume" || status=1
    if [ -z "$finished" ]; then
        [ -z "$written" ] || spoil || echo "$name: what was written could not be removed"
        echo "$name: not installed"
        [ "$status" -ne 0 ] || status=1
    fi
    ! mountpoint -q "$tools" || umount "$tools" || status=1
    rm -rf -- "$work"
    [ -z "$finished" ] || [ "$status" -ne 0 ] || echo "$name: installed"
    exit "$status"
}

[ "$#" -eq 1 ] || fail "give one disk"
disk=$1
passphrase=$(cat)
[ -n "$passphrase" ] || fail "give a passphrase on standard input"
[ "$(id -u)" -eq 0 ] || fail "only root can install"
[ -b "$disk" ] || fail "$disk is no disk"
for file in live/filesystem.squashfs live/vmlinuz live/initrd.img osgates/tools.squashfs boot/grub/grub.cfg; do
    [ -s "$medium/$file" ] || fail "the medium has no $file"
done
mib=$(($(blockdev --getsize64 "$disk") >> 20))
[ "$mib" -ge $((@ESP_MIB@ + 192)) ] || fail "$disk has $mib MiB, and that is too little"
# blkid(8): 2, if there is nothing that it knows.
found=0
blkid --probe "$disk" >/dev/null 2>&1 || found=$?
[ "$found" -eq 2 ] || fail "$disk is not empty"
case $disk in
    *[0-9]) part=${disk}p ;;
    *) part=$disk ;;
esac
mkdir -m 0700 -- "$work" || fail "another installation is at work, or was cut off: $work is there"
trap leave EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir -- "$tools" "$esp" "$root" "$initrd"
mount -t squashfs -o loop,ro,nosuid,nodev "$medium/osgates/tools.squashfs" "$tools"
modprobe -a dm_mod dm_crypt xts vfat ext4

step "partitions"
written=yes
use sfdisk --quiet "$disk" <<TABLE
label: gpt
start=1MiB, size=@ESP_MIB@MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name="esp"
type=CA7D7CCB-63ED-4C53-861C-1742536059CC, name="root"
TABLE
udevadm settle --timeout=60
[ -b "${part}1" ] && [ -b "${part}2" ] || fail "the kernel does not see the partitions of $disk"

step "encryption"
printf '%s' "$passphrase" | use cryptsetup luksFormat --type luks2 --batch-mode --key-file - \
    --cipher @CIPHER@ --key-size @KEY_SIZE@ --sector-size 512 \
    --pbkdf argon2id --pbkdf-memory @MEMORY_KIB@ --pbkdf-force-iterations @TIME@ --pbkdf-parallel 1 "${part}2"
uuid=$(use cryptsetup luksUUID "${part}2")
[ -n "$uuid" ] || fail "the volume has no UUID"
printf '%s' "$passphrase" | use cryptsetup open --type luks2 --key-file - "${part}2" "$volume"
opened=yes

step "root file system"
use mke2fs -q -t ext4 -L OSGATES_DEMO -m 0 -O '^has_journal' "/dev/mapper/$volume"
mount -t ext4 -o nosuid,nodev,noexec "/dev/mapper/$volume" "$root"
mkdir -m 0755 -- "$root/live"
cp -- "$medium/live/filesystem.squashfs" "$root/live/filesystem.squashfs"
sync
cmp -- "$medium/live/filesystem.squashfs" "$root/live/filesystem.squashfs"
umount "$root"
use cryptsetup close "$volume"
opened=''

step "recovery key, to be written down:"
PASSWORD=$passphrase use systemd-cryptenroll --recovery-key "${part}2"

step "initrd"
# The loader is among them, as a path alone. What the live system preloads has no place there.
libraries() {
    (cd "$tools" && LD_LIBRARY_PATH=$tools ldd "$@") >"$work/ldd"
    ! grep -F 'not found' "$work/ldd" || fail "a library is not on board"
    sed -n 's/^[[:space:]]*\([^ ]* => \)\{0,1\}\(\/[^ ]*\) (0x[0-9a-f]*)$/\2/p' "$work/ldd" | sort -u |
        grep -v -x -F -f /etc/ld.so.preload >"$work/libraries"
}
mkdir -p -m 0755 -- "$initrd/@DIRECTORY@" "$initrd/@SCRIPTS@" "$initrd/@PLUGINS@"
set -- @PROGRAMS@
for program in "$@"; do
    cp -- "$tools/$program" "$initrd/@DIRECTORY@/$program"
done
libraries "$@" @PLUGIN@
for library in $(cat "$work/libraries"); do
    [ -e "$initrd/@DIRECTORY@/${library##*/}" ] || cp -L -- "$library" "$initrd/@DIRECTORY@/${library##*/}"
done
[ -e "$initrd/@DIRECTORY@/@LOADER@" ] || fail "the initrd has no @LOADER@"
cp -- "$tools/@PLUGIN@" "$initrd/@PLUGINS@/@PLUGIN@"
for module in @MODULES@; do
    xz -dc -- "/usr/lib/modules/$(uname -r)/$module.xz" >"$initrd/@DIRECTORY@/${module##*/}"
done
sed "s/@@UUID@@/$uuid/" "$tools/cryptroot" >"$initrd/@SCRIPTS@/cryptroot"
find "$initrd" -mindepth 1 -exec chmod 0755 {} +
(cd "$initrd" && find . -mindepth 1 -printf '%P\n' | sort | cpio --quiet --create --format=newc --owner=0:0) >"$work/cpio"

step "boot files"
use mkfs.fat -F 32 -n ESP "${part}1" >/dev/null
mount -t vfat -o nosuid,nodev,noexec "${part}1" "$esp"
mkdir -p -- "$esp/.disk" "$esp/boot/grub" "$esp/live" "$esp/EFI/BOOT"
cp -- "$medium/.disk/info" "$esp/.disk/info"
cp -- "$medium/live/vmlinuz" "$esp/live/vmlinuz"
# The kernel unpacks one archive after the other; each begins at a multiple of four.
size=$(stat -c %s -- "$medium/live/initrd.img")
{
    cat -- "$medium/live/initrd.img"
    head -c $((-size & 3)) /dev/zero
    cat -- "$work/cpio"
} >"$esp/live/initrd.img"
sed 's|^\([[:space:]]*linux .*\)$|\1 @PARAMETERS@|' "$medium/boot/grub/grub.cfg" >"$esp/boot/grub/grub.cfg"
grep -q -F ' @PARAMETERS@' "$esp/boot/grub/grub.cfg" || fail "the boot menu could not be changed"
# Until the last one has its name, no firmware starts anything of this disk.
for loader in mmx64.efi grubx64.efi BOOTX64.EFI; do
    cp -- "$medium/EFI/BOOT/$loader" "$esp/EFI/BOOT/$loader.new"
done
sync
for loader in mmx64.efi grubx64.efi BOOTX64.EFI; do
    mv -- "$esp/EFI/BOOT/$loader.new" "$esp/EFI/BOOT/$loader"
    sync
done
umount "$esp"
finished=yes
