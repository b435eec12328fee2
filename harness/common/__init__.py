"""What every room of the harness may use: errors, paths, files, tables, statistics, signals."""
