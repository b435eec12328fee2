"""How the embedded models are made: tokenizer, prompts, network, training, evaluation."""
