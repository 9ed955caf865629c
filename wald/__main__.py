"""The command ``wald``, also as ``python -m wald``."""

import os
import sys

_INTERRUPTED = 130  # ``wald.errors.EXIT_INTERRUPTED``: Ctrl-C may come before that is loaded


def main() -> None:
    """Run the command line; Ctrl-C is no traceback while its modules are loaded either."""
    _open_standard_streams()
    try:
        from wald.cli import main as run  # noqa: PLC0415 - it takes the time in question

        run()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _open_standard_streams() -> None:
    """Open what the caller has closed: a file of ours with its number would be written to."""
    closed = [number for number in range(3) if not _is_open(number)]
    for number in closed:
        opened = os.open(os.devnull, os.O_RDWR)
        assert opened == number  # the lowest there is
        os.set_inheritable(number, True)  # noqa: FBT003 - the call's own signature
    if 0 in closed:
        sys.stdin = os.fdopen(0)
    if 1 in closed:
        sys.stdout = os.fdopen(1, "w")
    if 2 in closed:
        sys.stderr = os.fdopen(2, "w")


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
