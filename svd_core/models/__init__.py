"""The components of a checkpoint, and their optimized forward passes: equal results with less time and memory."""
