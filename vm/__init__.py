"""Virtual machines: QEMU, swtpm, consoles and the channel into the guest. Knows nothing of pytest or gates."""
