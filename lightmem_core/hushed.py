"""What is shown, logged or saved of an error does not hold the secrets that it may repeat."""

SHORTEST = 8  # characters; a shorter key is a placeholder, and may stand in any word


def hushed(text: str, *secrets: str) -> str:
    for secret in secrets:
        if len(secret) >= SHORTEST:
            text = text.replace(secret, "***")
    return text
