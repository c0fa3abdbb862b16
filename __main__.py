"""Run the command line: `python -m svd_stages`."""

from .headless.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
