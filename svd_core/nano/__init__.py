"""The old place of svd-nano's programs, which are in training/svd_nano/ now."""
