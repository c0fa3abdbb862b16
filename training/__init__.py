"""Train models."""
