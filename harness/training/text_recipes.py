"""The recipes of the models that read texts."""

from dataclasses import dataclass

from harness.training.train import Phase, Stage

TOKENS_PER_STEP = 2048  # of one process


@dataclass(frozen=True)
class Recipe:
    """The recipe of a model that reads texts.

    vocabulary: tokens of the byte-pair encoding.
    shape: arguments of `nets.config` after the vocabulary.
    """

    name: str
    vocabulary: int
    shape: dict[str, int]
    phase: Phase


def phase(name: str, steps: dict[int, int], decay: float) -> Phase:
    """Return the phase of a model, one stage for each row length.

    Args:
        name: of the model.
        steps: number of steps by row length in tokens, in the order of the stages.
        decay: final share of steps with linear decay.
    """
    return Phase(name, tuple(Stage(length, count, TOKENS_PER_STEP) for length, count in steps.items()), decay)


# 16 heads of 16 numbers: four slopes are below 2^-6
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "tiny-books",
            2048,
            {"d_model": 256, "layers": 3, "heads": 16},
            phase("tiny-books", {512: 1100, 1024: 250}, 0.95),
        ),
        Recipe(
            "tiny-code",
            4096,
            {"d_model": 256, "layers": 4, "heads": 16},
            phase("tiny-code", {256: 3000, 2048: 9000}, 0.3),
        ),
    )
}
