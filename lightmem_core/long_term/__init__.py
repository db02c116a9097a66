"""Light 3: the store of entries, its search, and the update queues of the sleep phase."""
