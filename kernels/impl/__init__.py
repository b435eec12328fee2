"""HOW it is computed: the dense reference, torch's SDPA on visited pairs, FlexAttention, and
Triton."""
