"""The folder `kernels` shares its name with a package that transformers imports."""

import importlib.metadata
import os
import subprocess
import sys

from tests.conftest import ROOT


def test_foreign_kernels_package_is_refused_in_a_sentence(tmp_path):
    """A stand-in for the other distribution: its metadata is what transformers and we look at."""
    info = tmp_path / "kernels-0.18.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.5\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "harness.run"], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "pip uninstall kernels" in done.stderr
    assert "Traceback" not in done.stderr


def test_our_version_is_outside_the_range_that_transformers_accepts():
    from packaging.version import Version
    from transformers.utils.import_utils import KERNELS_MAX_VERSION, is_kernels_available

    import kernels

    assert Version(importlib.metadata.version("positional-lsh-harness")) >= Version("1.0")
    assert Version("1.0") >= Version(KERNELS_MAX_VERSION)
    assert not is_kernels_available()
    assert not hasattr(kernels, "__version__")
