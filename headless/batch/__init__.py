"""Many images to many clips, so that nothing is lost and nothing made twice.

A row of a manifest, or a picture of a folder, becomes a task (`tasks`), named by what its clip is made from. The
driver (`driver`) hands tasks to workers, each a process of its own (`processes`, or on a Ray cluster `on_ray`) that
renders through whatever it is told by an import path (`rendering.Renderer`), and keeps account in a ledger. The truth
lies in the run folder (`folder`): a clip is done when it and its record are there, put in place complete. So the
ledger can be lost, drivers and workers can be killed, and the same command goes on.

What runs on the driver's side imports neither torch nor a node.
"""
