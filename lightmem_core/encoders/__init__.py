"""Models that turn text into vectors and tokens; the sensory and long-term memory share them."""
