"""lm-eval's tasks under the runner: which there are, their documents, the model behind them, and
their scores."""

import contextlib
import io
import logging
from collections.abc import Iterator

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what we do on purpose


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Importing lm-eval's tasks prints, and tries a download that they need for essays only; stdout
    is the table's."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
