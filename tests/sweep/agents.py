"""The part of a W&B server that gives an agent the rows of a grid, on loopback."""

import itertools
import json
from dataclasses import dataclass, field

import yaml

from tests.tracking.server import ENTITY, Handler, Server


@dataclass
class Sweep:
    config: dict
    rows: list[dict]  # not given out yet
    given: int = 0


@dataclass
class Sweeps:
    by_id: dict[str, Sweep] = field(default_factory=dict)


class SweepHandler(Handler):
    sweeps: Sweeps

    def _on_UpsertSweep(self, asked: dict) -> dict:
        config = yaml.safe_load(asked["config"])
        # what the grid search of W&B's package `sweeps` does: parameters by name, the last varying
        # fastest
        axes = [[(n, v) for v in p.get("values", [p.get("value")])] for n, p in sorted(config["parameters"].items())]
        name = f"sweep{len(self.sweeps.by_id) + 1}"
        self.sweeps.by_id[name] = Sweep(config, [dict(row) for row in itertools.product(*axes)])
        sweep = {"name": name, "project": self._project(asked["projectName"])}
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

    def _on_CreateAgent(self, asked: dict) -> dict:
        return {"createAgent": {"agent": {"id": asked["sweep"]}}}

    def _on_Heartbeat(self, asked: dict) -> dict:
        sweep, commands = self.sweeps.by_id[asked["id"]], []
        if not json.loads(asked["runState"]):
            commands = [{"type": "exit"}]
            if sweep.rows:
                sweep.given += 1
                args = {name: {"value": value} for name, value in sweep.rows.pop(0).items()}
                run_id, program = f"{asked['id']}-{sweep.given}", sweep.config["program"]
                commands = [{"type": "run", "run_id": run_id, "program": program, "args": args}]
        return {"agentHeartbeat": {"agent": {"id": asked["id"]}, "commands": json.dumps(commands)}}

    def _on_SweepWithRuns(self, asked: dict) -> dict:
        sweep = self.sweeps.by_id[asked["sweep"]]
        empty = ("description", "heartbeatAt", "updatedAt", "bestLoss", "controller", "scheduler")
        about = {"id": asked["sweep"], "name": asked["sweep"], "method": "grid", "state": "RUNNING"}
        about |= {"config": yaml.safe_dump(sweep.config), "createdAt": "2026-01-01T00:00:00Z", **dict.fromkeys(empty)}
        return {"project": {"sweep": {**about, "earlyStopJobRunning": False, "runs": {"edges": []}}}}


def sweep_server() -> Server:
    """A server whose handler knows sweeps; close it at the end."""
    server = Server()
    server.RequestHandlerClass = type("Handler", (SweepHandler,), {"sweeps": Sweeps()})
    return server


__all__ = ["ENTITY", "sweep_server"]
