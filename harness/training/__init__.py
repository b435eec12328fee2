"""Training of the embedded models: tokenizer, prompts, network, training, evaluation."""
