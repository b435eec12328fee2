"""Make the embedded models from nothing, on two CPU cores: `python -m harness.train_tiny`."""

import argparse
from pathlib import Path

from harness.tiny import card, evaluate, recipe


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m harness.train_tiny", description=__doc__)
    parser.add_argument("--only", choices=sorted(recipe.FINISH), help="make this model and not the other")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "embedded", help="folder of the models")
    parser.add_argument(
        "--steps-scale",
        type=float,
        default=1.0,
        metavar="X",
        help="X times the steps of every stage (0 for a smoke test)",
    )
    options = parser.parse_args()
    names = [options.only] if options.only else list(recipe.FINISH)
    costs = recipe.make(names, options.out, options.steps_scale)
    for name in names:
        measured = evaluate.measure(options.out / name, samples=200 if options.steps_scale >= 1 else 4)
        asked = [f"--only {options.only}"] if options.only else []
        asked += [f"--steps-scale {options.steps_scale}"] if options.steps_scale != 1 else []
        command = " ".join(["python -m harness.train_tiny", *asked])
        card.write(options.out / name, command, costs[name], measured)
        for what, length, share in measured.table:
            print(f"{name}: {what}, {length} tokens: {share:.3f}")


if __name__ == "__main__":
    main()
