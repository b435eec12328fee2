"""The attention methods, one file each, and their registry (docs/architecture.md)."""
