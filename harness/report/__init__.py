"""Pages of results, drawn from the store alone.

`describe` holds the description of a page and `sections` fill it. Three renderers draw it: `page`
as a local file, `wandb_page` as a W&B report, `markdown` as tables for README.md and docs/.
"""
