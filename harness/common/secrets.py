"""Keys and tokens of this machine's environment stay out of records and logs."""

import os
import re

NAMES = re.compile("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
SHORTEST = 12  # characters: a shorter value is a setting (TOKENIZERS_PARALLELISM=false), not a key


def without_secrets(text: str) -> str:
    """The text with every value of an environment variable that is named like a key replaced by its
    name. A command line may carry one (hydra.job.env_set.WANDB_API_KEY=...), and so may an error of
    a download."""
    found = {value: name for name, value in os.environ.items() if NAMES.search(name) and len(value) >= SHORTEST}
    for value, name in sorted(found.items(), key=lambda item: -len(item[0])):
        text = text.replace(value, f"<{name}>")
    return text
