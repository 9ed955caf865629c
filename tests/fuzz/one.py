"""One target under atheris, in a process of its own; started by ``tests.fuzz.run``."""

import sys

import atheris

with atheris.instrument_imports(include=["wald", "tests.fuzz"]):
    from tests.fuzz.targets import TARGETS
    from wald.errors import WaldError


def main() -> None:
    """Fuzz the target named first with libFuzzer's arguments behind it; does not return."""
    target = TARGETS[sys.argv[1]]

    def taken_or_refused(data: bytes) -> None:
        try:
            target(data)
        except WaldError:
            return

    atheris.Setup(sys.argv[1:], taken_or_refused)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
