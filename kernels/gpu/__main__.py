"""`python -m kernels.gpu --minutes 9 --out FOLDER`: checks and measures a GPU in one command.

The steps, in order: a quick part of `kernels.check`, the whole check, `kernels.bench` forward,
`attend` end to end with the time of the host, a profile if `ncu` is installed, decoding, and the
backward pass. Each step runs in a separate process for its share of the minutes or for the time
left, and keeps its results when it is stopped. The same command with the same folder skips finished
steps and resumes the others. Needs torch, triton and numpy only. Exits with 0 if all steps
finished, with 75 if something is left, and with 1 if the check or a step failed. On a CPU it is a
dry run of the same steps on short inputs.
"""

import argparse
import signal
import sys
from pathlib import Path

import torch

from kernels.common.environment import environment
from kernels.gpu import session


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m kernels.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="for all steps together")
    parser.add_argument("--out", type=Path, required=True, help="folder for at most 8 files")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--commit", help="of the code, where it is no git checkout")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes takes a number above 0, not {options.minutes:g}.")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA GPU was found: --device cpu is a dry run.")
    about = environment(options.device, "kernels.gpu", options.commit)
    try:
        measurement = session.Measurement(options.out.resolve(), about, options.minutes)
    except (ValueError, KeyError, OSError) as e:
        parser.error(f"--out: {e}")
    every = session.steps(options.device, options.commit)
    for turn in range(session.MAX_ROUNDS):
        for step in every:
            if (turn == 0 or step.lasting) and measurement.open(step):
                if measurement.remaining() < session.MIN_SHARE * measurement.seconds:
                    break
                measurement.take(step)
    measurement.tidy()
    known = {step.name: measurement.of(step) for step in every}
    measurement.save()
    measurement.say("".join(f"{name}: {x['status']}, {x['seconds']:.0f} s\n" for name, x in known.items()))
    statuses = {x["status"] for x in known.values()}
    return 1 if "failed" in statuses else 75 if "left" in statuses else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))  # ends the processes of a step too
    sys.exit(main())
