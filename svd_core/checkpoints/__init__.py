"""Checkpoints: which there are, what they are, loading them, converting them, fetching the published ones.

header, family, inspect, library, catalog, download need no torch; files, texts, rules and settings stand at their door.
verify reads every number. keymap is the table of names in both published
forms; tensors and opened carry weights that are not read yet; single_file and folder are the two forms on disk; modules
and load make the parts that travel on wires (parts.py).
"""
