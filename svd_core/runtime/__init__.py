"""The interface to the surrounding program: device, memory, progress, warnings, folders."""
