"""What an installation that is no clone must bring along."""

import fnmatch
import tomllib

from harness.common.paths import CONF
from tests.conftest import ROOT


def test_every_file_that_is_read_is_installed():
    """setuptools takes the Python files by itself; the patterns are relative to the package."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["harness"]
    package = ROOT / "harness"
    read = [
        p for folder in ("tasks", "report", "embedded", "lmeval", "models") for p in (package / folder).rglob("*.*")
    ]
    read += list((ROOT / "conf").rglob("*.yaml"))
    inside = [p.relative_to(ROOT if p.is_relative_to(ROOT / "conf") else package).as_posix() for p in read]
    files = {name for name in inside if not name.endswith((".py", ".pyc"))}
    assert len(files) > 40
    assert not [f for f in files if not any(fnmatch.fnmatch(f, pattern.replace("/**", "")) for pattern in patterns)]
    assert (CONF / "config.yaml").samefile(ROOT / "conf" / "config.yaml")
    assert CONF.parent == package
