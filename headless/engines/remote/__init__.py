"""Run graphs on a ComfyUI server."""
