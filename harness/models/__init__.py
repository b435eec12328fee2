"""Models: what a configuration names (spec), how it is loaded (load), and how its attention is
replaced (swap, one file per family)."""
