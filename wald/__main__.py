"""The command ``wald``, also as ``python -m wald``."""

import sys

_INTERRUPTED = 130  # ``wald.errors.EXIT_INTERRUPTED``: Ctrl-C may come before that is loaded


def main() -> None:
    """Run the command line; Ctrl-C is no traceback while its modules are loaded either."""
    try:
        from wald.cli import main as run  # noqa: PLC0415 - it takes the time in question

        run()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
