"""`python -m harness.lm_eval ...`: lm-eval's command with the model `plsh`.

The attention of this model is replaced:

    python -m harness.lm_eval --model plsh --tasks niah_single_1 \\
        --model_args pretrained=FOLDER,attn=plsh,masks=16

All other arguments are lm-eval's. A program calls `register` and then
lm_eval.simple_evaluate(model="plsh", ...).
"""

import sys
import traceback
from collections.abc import Sequence

from harness.common.command import command, parsers_answer_in_a_sentence
from harness.common.errors import EXIT_OK, UserError
from harness.common.preflight import refuse_foreign_kernels


def register() -> None:
    """Register the model with lm-eval; a second call does nothing."""
    from lm_eval.api.registry import model_registry

    if "plsh" not in model_registry:
        model_registry.register("plsh", target="harness.experiment.replaced_lm:ReplacedLM")


@command
def main(arguments: Sequence[str]) -> int:
    """Run lm-eval's command; return 0, or 2 after a UserError, for a mistake.

    Raises:
        Exception: any error of the evaluation, as lm-eval raises it.
    """
    refuse_foreign_kernels()
    register()
    from lm_eval.__main__ import cli_evaluate

    sys.argv[1:] = arguments
    with parsers_answer_in_a_sentence():
        try:
            cli_evaluate()
        except UserError:
            raise
        except Exception as error:
            if _evaluates(error):
                raise
            told = " ".join(str(error).split())[:300]
            raise UserError(f"lm-eval does not begin with these arguments ({type(error).__name__}: {told}).") from None
    return EXIT_OK


def _evaluates(error: Exception) -> bool:
    """Return whether an error was raised by an evaluation, and not while its arguments were read and
    its model and tasks were made."""
    return any(frame.f_code.co_name == "evaluate" for frame, _ in traceback.walk_tb(error.__traceback__))


if __name__ == "__main__":
    sys.exit(main())
