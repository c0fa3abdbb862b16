"""Run graphs on a ComfyUI checkout in this process."""
