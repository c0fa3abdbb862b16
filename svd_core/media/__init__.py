"""Read and write images and video files."""
