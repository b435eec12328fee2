"""Pages of results, drawn from the store alone: a description of what to show (`sections`), and
what draws it (`page` for a local file, `wandb_page` for W&B, `markdown` for README.md and
docs/)."""
