"""Keep keys and tokens in environment variables out of records and logs."""

import os
import re

SECRET_NAMES = re.compile("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
MIN_LENGTH = 12  # characters; a shorter value is a setting, such as TOKENIZERS_PARALLELISM=false


def without_secrets(text: str) -> str:
    """Return the text with secrets of environment variables replaced by the variables' names.

    A command line may contain a secret (hydra.job.env_set.WANDB_API_KEY=...), and so may the error
    of a download. Secrets are the values of variables whose names look like those of keys.
    """
    secrets = {v: name for name, v in os.environ.items() if SECRET_NAMES.search(name) and len(v) >= MIN_LENGTH}
    for value, name in sorted(secrets.items(), key=lambda item: -len(item[0])):
        text = text.replace(value, f"<{name}>")
    return text
