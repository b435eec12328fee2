"""Models: identified by a configuration (spec), loaded (load), their attention replaced (swap)."""
