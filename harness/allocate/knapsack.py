"""One length for each head within a budget of pairs: a multiple-choice knapsack."""

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from harness.common.errors import UserError


def choose(loss: np.ndarray, cost: np.ndarray, budget: float) -> list[int]:
    """Return the choice of each item with the least sum of losses among those within the budget.

    Args:
        loss: (items, choices).
        cost: (items, choices), of which an item's least are affordable together.
        budget: largest sum of costs.

    Raises:
        UserError: if the solver finds no choice.
    """
    items, choices = loss.shape
    one_each = np.kron(np.eye(items), np.ones((1, choices)))
    result = milp(
        loss.ravel(),
        integrality=np.ones(loss.size),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(cost.reshape(1, -1), -np.inf, budget)],
        options={"mip_rel_gap": 1e-6, "time_limit": 60.0},
    )
    if result.x is None:
        raise UserError(f"No lengths of the heads fit the budget: {result.message}")
    return result.x.reshape(items, choices).argmax(1).tolist()
