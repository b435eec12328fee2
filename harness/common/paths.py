"""Where the project's own files lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the clone
CONF = ROOT / "harness" / "conf"  # a link to conf in a clone, the files themselves where it is installed
EMBEDDED = ROOT / "harness" / "embedded"  # models that come with the package
