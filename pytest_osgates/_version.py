"""The version, read by the build without importing the rest."""

VERSION = "0.1.0"
