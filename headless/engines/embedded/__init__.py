"""Run graphs on this package's own executor."""
