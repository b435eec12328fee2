"""`python -m harness.data task=... [the options of harness.run]`: make or fetch the tasks' data where there is a
network, and hash it. It lies in the results folder; copied with it, nodes without a network read the same samples."""

import json
import sys

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from harness.config import CONF, register
from harness.errors import UserError, refused
from harness.mistakes import explain
from harness.preflight import refuse_foreign_kernels
from harness.table import Table


def main(arguments: list[str] | None = None) -> int:
    """Returns 0; 1 if data of a task could not be had, 2 for a mistake in the command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        refuse_foreign_kernels()
        register()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", overrides=arguments)
        found = _prepare(cfg)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sentence = str(error) if isinstance(error, UserError) else explain(error, arguments)
        return refused(sentence)
    columns = ["task", "status", "samples", "sha256", "place"]
    Table("", columns, [[str(row.get(c, "")) for c in columns] for row in found], []).print()
    failed = any(row["status"] == "error" for row in found)
    print(json.dumps({"status": "failed" if failed else "ok", "data": found}))
    return 1 if failed else 0


def _prepare(cfg) -> list[dict]:
    from harness.plan import plan

    planned = plan(cfg)
    found = []
    for each in planned.tasks:
        row = {"task": each.task.name}
        try:
            data = each.task.prepare(each.options, planned.cell, planned.samples, planned.results / "data")
            row |= {"status": "ok"} if data is None else _described(data)
        except (UserError, NotImplementedError) as error:
            row["status"] = "error" if isinstance(error, UserError) else "unsupported"
            print(error, file=sys.stderr)
        found.append(row)
    return found


def _described(data) -> dict:
    return {"status": "ok", "samples": data.count, "sha256": data.sha256, "place": str(data.place)}


if __name__ == "__main__":
    sys.exit(main())
