"""Tasks, one file each. `harness.tasks.registry` lists them."""
