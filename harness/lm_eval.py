"""`python -m harness.lm_eval ...`: lm-eval's command with the model `plsh`.

The attention of this model is replaced:

    python -m harness.lm_eval --model plsh --tasks niah_single_1 \\
        --model_args pretrained=FOLDER,attn=plsh,masks=16

All other arguments are lm-eval's. A program calls `register` and then
lm_eval.simple_evaluate(model="plsh", ...).
"""

import sys
from collections.abc import Sequence

from harness.common.command import command, parsers_answer_in_a_sentence
from harness.common.errors import EXIT_OK
from harness.common.preflight import refuse_foreign_kernels


def register() -> None:
    """Register the model with lm-eval; a second call does nothing."""
    from lm_eval.api.registry import model_registry

    if "plsh" not in model_registry:
        model_registry.register("plsh", target="harness.experiment.replaced_lm:ReplacedLM")


@command
def main(arguments: Sequence[str]) -> int:
    """Run lm-eval's command; return 0, or 2 for a mistake."""
    refuse_foreign_kernels()
    register()
    from lm_eval.__main__ import cli_evaluate

    sys.argv[1:] = arguments
    with parsers_answer_in_a_sentence():
        cli_evaluate()
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
