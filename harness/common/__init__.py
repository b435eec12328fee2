"""Shared by all packages of the harness: errors, paths, tables, statistics, signals and ranks."""
