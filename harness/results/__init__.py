"""The store: cells, tasks and rows as bytes on disk."""
