"""lm-eval's tasks under the runner: their catalogue, documents, model and scores."""

import contextlib
import io
import logging
from collections.abc import Iterator

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings concern intended settings


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Discard stdout and stderr, for imports of lm-eval's tasks.

    These print, and try to download data that only essays need. stdout is reserved for the table.
    """
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
