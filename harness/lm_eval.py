"""`python -m harness.lm_eval ...`: lm-eval's command with the model `plsh`.

The attention of this model is replaced:

    python -m harness.lm_eval --model plsh --tasks niah_single_1 \\
        --model_args pretrained=FOLDER,attn=plsh,masks=16

All other arguments are lm-eval's. A program calls `register` and then
lm_eval.simple_evaluate(model="plsh", ...).
"""

import sys

from harness.common.errors import EXIT_OK, UserError, report_mistake
from harness.common.preflight import refuse_foreign_kernels
from harness.common.streams import steady_streams


def register() -> None:
    """Register the model with lm-eval; a second call does nothing."""
    from lm_eval.api.registry import model_registry

    if "plsh" not in model_registry:
        model_registry.register("plsh", target="harness.experiment.replaced_lm:ReplacedLM")


def main() -> int:
    """Run lm-eval's command in sys.argv; return 0, or 2 for a mistake in an attention option."""
    steady_streams()
    try:
        refuse_foreign_kernels()
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except UserError as error:
        return report_mistake(str(error))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
