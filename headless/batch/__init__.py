"""Render one video for each of many images, resumable after any crash.

A row of a manifest, or an image of a folder, becomes a task (`tasks`). The driver (`driver`) assigns tasks to worker
processes (`process_pool`, or `ray_pool` on a Ray cluster). Workers render through a `rendering.Renderer` that is found
by its import path. The run folder (`folder`) is the source of truth: a task is done when its video and its record
exist, both put in place complete. The ledger (`ledger`) is an index of it and can be rebuilt.

The driver's side imports neither torch nor a node.
"""
