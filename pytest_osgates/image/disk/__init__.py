"""Disk images read without root, loop devices or mounts: raw and qcow2, partition tables, LUKS headers.

Like the readers of ISO images these take what they read for hostile: each number has a bound, areas that overlap or
lie outside are errors, and whatever cannot be made out raises :class:`~pytest_osgates.vm.errors.ImageError`.

qcow2 is read by `qcow2`, not by qemu-img: ``convert`` would write a copy as large as the disk, ``dd`` starts a
program for each of thousands of reads, and both would follow file names out of the image.
"""
