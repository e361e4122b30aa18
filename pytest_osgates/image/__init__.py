"""Reading an image without booting or mounting it: ISO 9660, squashfs, the live root, its digest.

Everything here is read-only and takes the image for hostile: each size, depth, loop and decompression has a bound,
whatever is malformed raises :class:`~pytest_osgates.vm.errors.ImageError`, and no name from an image is ever used
as a path on the host.

Names are `str`, decoded as UTF-8 with `surrogateescape`, so that a name of any bytes can be looked up again. To show
one to a person, use :func:`pytest_osgates.image.source.shown`.
"""
