"""WHAT is computed: slopes, masks, the weight of a pair of tokens, and how many pairs a method
visits."""
