"""What options of sensory memory must be: a wrong one is refused before anything runs."""

from __future__ import annotations


def check_number(
    name: str, value: object, least: float = float("-inf"), most: float = float("inf")
) -> None:
    """Raise ValueError unless `value` is a number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        bounds = f" from {least:g} to {most:g}" if most < float("inf") else f" from {least:g} on"
        raise ValueError(f"{name} must be a number{bounds}, got {value!r}")


def check_whole(name: str, value: object, least: int, most: float = float("inf")) -> None:
    """Raise ValueError unless `value` is a whole number from `least` to `most`."""
    if not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    check_number(name, value, least, most)


def check_rate(rate: float) -> None:
    """Raise ValueError for what is no share of tokens to keep."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1:
        raise ValueError(f"rate must be above 0 and at most 1, got {rate!r}")


def check_embedder(embedder: object) -> None:
    """Raise ValueError for what is no embedder, such as a word that means none."""
    is_one = hasattr(embedder, "encode") and not isinstance(embedder, str)  # a str has it, too
    if embedder is not None and not is_one:
        raise ValueError(
            f"embedder must be 'configured', for that of memory.embedder, or left out, "
            f"got {embedder!r}"
        )
