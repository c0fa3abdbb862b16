"""Run one graph: embedded, on a ComfyUI in this process, or on a server."""
