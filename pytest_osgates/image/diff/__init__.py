"""Two images compared, byte by byte and layer by layer, in one pass.

1. `digests` reads both images once, in two threads, hashes them, and notes which MiB are equal in place. If the
digests
   are equal, nothing else is done: they alone decide. What is known to be equal is not read again.
2. `compare` walks the layers: `system` (MBR, GPT, Apple map, El Torito), `iso`, `iso_tree` and `iso_records` (volume
   descriptors, path tables, directory records with all System Use entries, Joliet, files), `squashfs*`, `fat`,
   `cpio`,
   `pe`, and `formats` inside plain files. What a file is, its first bytes say, not its name.
3. Of a squashfs the metadata is uncompressed whole, and both trees are walked side by side (`squashfs_walk`). Data
are
   compared as they are stored (`squashfs_data`), in long runs that are contiguous in both; only blocks whose stored
   bytes differ are uncompressed. Runs that moved are compared at both places, so a shift costs a read and no more.
4. Accounts: each walker claims the byte ranges that it compared or named (`found.Extents`). What nobody claimed,
holds
   anything but zeros, and is not in the other image as well, is counted: the bytes unexplained.

A table whose bytes differ only because something else does (places, numbers, sizes) is named, and said to follow.
What
is the same in other bytes is said to be compressed otherwise. A structure that is damaged is compared as bytes,
with a
note. Memory holds the metadata of both squashfs, a few blocks, and the differences; never a file, but for small ones
that are looked into.

`probes` flips one byte of each layer in memory and compares: the gate's proof that the comparison sees that layer.
"""
