"""Batch construction and upkeep of memories on Ray."""
