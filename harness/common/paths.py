"""Paths of the project's own files."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the clone
CONF = ROOT / "harness" / "conf"  # a link to conf in a clone, a folder in an installed package
EMBEDDED = ROOT / "harness" / "embedded"  # models that are part of the package
TEXTS = EMBEDDED / "texts"  # held-out texts that are part of the package
