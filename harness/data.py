"""`python -m harness.data task=... [the options of harness.run]`: make or fetch the data of tasks.

The data are hashed and kept in the results folder; copied with it, they give nodes without a
network the same samples. `python -m harness.sweep FILE --prepare` prepares data and models of all
rows of a sweep.
"""

import sys

from harness.common.errors import UserError, report_mistake
from harness.common.preflight import refuse_foreign_kernels
from harness.common.streams import steady_streams
from harness.experiment.compose import compose_config


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code: 0, 1 if data could not be made, 2 for a mistake."""
    steady_streams()
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
