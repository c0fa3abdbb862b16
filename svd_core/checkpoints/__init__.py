"""Checkpoints: find, download, inspect, load, convert and save them.

On disk:
    stable_file         files that must not change while they are read
    safe_json           untrusted JSON: bounded parsing, validation of values
    safetensors_header  names, dtypes and shapes of a file's tensors
    model_metadata      frames, size, guidance and architecture settings, with their defaults
    detect              model family and module configurations from tensor names and shapes
    keymap              tensor names: Stability's single file <-> diffusers and transformers

Formats:
    reader              an open checkpoint whose tensors are read on demand
    single_file         Stability's single-file layout
    diffusers_format    diffusers' folder layout
    safetensors_writer  safetensors files written tensor by tensor

Operations:
    library, inspect, catalog, download   need no torch
    build_modules, load, deferred_weights, convert
"""
