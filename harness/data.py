"""`python -m harness.data task=... [the options of harness.run]`: make or fetch the data of tasks.

The data are hashed and kept in the results folder; copied with it, they give nodes without a
network the same samples. `python -m harness.sweep FILE --prepare` prepares data and models of all
rows of a sweep.
"""

import sys
from collections.abc import Sequence

from harness.common.command import command
from harness.common.preflight import refuse_foreign_kernels
from harness.experiment.compose import compose_config


@command
def main(arguments: Sequence[str]) -> int:
    """Run the command and return the exit code: 0, 1 if data could not be made, 2 for a mistake."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    refuse_foreign_kernels()
    from harness.experiment.plan import Planner, to_run_config
    from harness.experiment.prepare import prepare

    plan = Planner(on_this_machine=False).plan(to_run_config(compose_config(arguments)))
    return prepare([plan], results=str(plan.results), models=False)


if __name__ == "__main__":
    sys.exit(main())
