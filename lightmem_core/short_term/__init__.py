"""Light 2: fill buffers with topics and write the memory entries."""
