"""Tell where the evaluation of svd-nano is now: `python -m svd_stages.training.svd_nano.evaluate`."""

import sys

if __name__ == "__main__":
    sys.exit("the evaluation of svd-nano has moved: python -m svd_stages.training.svd_nano.evaluate")
