"""Hostile clients, model folders and process states, run against a real `eka serve` while others use it (scripts/torture)."""
