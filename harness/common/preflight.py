"""The name `kernels` is also the name of a Hugging Face package that transformers imports when it
sees one."""

import importlib.metadata

from harness.common.errors import UserError


def refuse_foreign_kernels() -> None:
    """Raise UserError if the distribution called "kernels" is installed: transformers would take
    ours for it, or it would shadow ours. To be called before transformers is imported."""
    try:
        version = importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        return
    raise UserError(
        f"The package 'kernels' {version} is installed in this environment and clashes with this project's folder "
        "of the same name: run 'pip uninstall kernels', or use an environment of its own."
    )
