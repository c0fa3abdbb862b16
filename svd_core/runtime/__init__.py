"""What the surrounding program provides: device, memory, progress, warnings, folders."""
