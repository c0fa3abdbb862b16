"""Run the command line: `python -m svd_stages`."""

from collections.abc import Sequence

from .headless.cli.main import main as run_command
from .headless.process import own_process


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command in a process of its own and return the exit status."""
    with own_process():
        return run_command(argv)


if __name__ == "__main__":
    raise SystemExit(main())
