"""Measure this package against stock diffusers, side by side in one run."""
