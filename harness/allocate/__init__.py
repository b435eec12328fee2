"""`python -m harness.allocate`: a budget of pairs spent over the heads of a model."""
