"""`python -m harness.data task=... [the options of harness.run]`: make or fetch the tasks' data
where there is a network, and hash it. It lies in the results folder; copied with it, nodes without
a network read the same samples. For all rows of a sweep, the models too: python -m harness.sweep
FILE --prepare."""

import sys
from typing import TYPE_CHECKING

from harness.common.errors import UserError, report_mistake
from harness.common.preflight import refuse_foreign_kernels
from harness.common.streams import print_in_any_encoding
from harness.experiment.compose import compose_config

if TYPE_CHECKING:
    pass


def main(arguments: list[str] | None = None) -> int:
    """Returns 0; 1 if data of a task could not be had, 2 for a mistake in the command."""
    print_in_any_encoding()
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        refuse_foreign_kernels()
        from harness.experiment.plan import Planner, to_run_config
        from harness.experiment.prepare import prepare

        plan = Planner(on_this_machine=False).plan(to_run_config(compose_config(arguments)))
        return prepare([plan], results=str(plan.results), models=False)
    except UserError as error:
        return report_mistake(str(error))


if __name__ == "__main__":
    sys.exit(main())
