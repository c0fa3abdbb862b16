"""Exact rewrites of the published modules: the same numbers with less work, less memory and fewer passes over it."""
