"""Make videos of images with the stages of svd_core, and the graph that makes each of them again."""
