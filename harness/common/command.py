"""What all commands have in common: steady streams, and two answers to a mistake, a sentence on stderr
and a JSON line on stdout."""

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from harness.common.errors import UserError, report_mistake
from harness.common.secrets import learn
from harness.common.streams import steady_streams


class Parser(argparse.ArgumentParser):
    """A parser of arguments that answers mistakes in a sentence, without a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError with the message and the name of the command's --help."""
        raise UserError(_sentence(self, message))


@contextlib.contextmanager
def parsers_answer_in_a_sentence() -> Iterator[None]:
    """In the `with` block: the parsers of libraries do as `Parser` does, and raise UserError."""
    before = argparse.ArgumentParser.error

    def error(parser: argparse.ArgumentParser, message: str) -> NoReturn:
        raise UserError(_sentence(parser, message))

    argparse.ArgumentParser.error = error  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        argparse.ArgumentParser.error = before  # type: ignore[method-assign]


def command(main: Callable[[Sequence[str]], int]) -> Callable[..., int]:
    """Make a function of the arguments a command, whose arguments are by default those of sys.argv.

    It returns the exit code: that of the function, or 2 after a UserError, which is printed.
    """

    @functools.wraps(main)
    def call(arguments: Sequence[str] | None = None) -> int:
        steady_streams()
        words = sys.argv[1:] if arguments is None else arguments
        learn(words)
        try:
            return main(words)
        except UserError as error:
            return report_mistake(str(error), **error.fields)

    return call


def _sentence(parser: argparse.ArgumentParser, message: str) -> str:
    return f"{' '.join(message.split()).rstrip('.')}. See {parser.prog} --help."
