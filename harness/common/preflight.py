"""Refuse the Hugging Face package `kernels`, which transformers imports if it is installed."""

import importlib.metadata

from harness.common.errors import UserError


def refuse_foreign_kernels() -> None:
    """Check that no distribution called "kernels" is installed.

    transformers would take our package for it, or it would shadow ours. Call this before
    transformers is imported.

    Raises:
        UserError: if it is installed.
    """
    try:
        version = importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        return
    raise UserError(
        f"The package 'kernels' {version} is installed in this environment and clashes with this project's folder "
        "of the same name: run 'pip uninstall kernels', or use an environment of its own."
    )
