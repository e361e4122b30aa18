"""The way into a running guest: injected from outside and recognised by a nonce."""
