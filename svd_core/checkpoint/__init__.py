"""Checkpoints: what a file or folder is, its names and shapes, loading it, writing it, fetching it."""
