"""`python -m kernels.gpu`: check, bench and profile of a GPU in one resumable command."""
