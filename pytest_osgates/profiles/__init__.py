"""Distro profiles: one TOML file per distribution."""
