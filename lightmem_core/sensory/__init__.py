"""Light 1: keep the words that inform, and cut the stream into topics."""
