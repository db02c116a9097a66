"""What is shown, logged or saved of an error does not hold the secrets that it may repeat."""

import re

SHORTEST = 8  # characters; a shorter one may be a part of any word, so only whole words are hidden


def hushed(text: str, *secrets: str) -> str:
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        found = re.escape(secret)
        text = re.sub(found if len(secret) >= SHORTEST else rf"(?<!\w){found}(?!\w)", "***", text)
    return text
