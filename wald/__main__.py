"""``python -m wald`` is the command ``wald``."""

from wald.cli import main

main()
