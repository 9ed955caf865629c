"""A bar for long work: on a terminal, on standard error; nothing elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tell = Callable[[str, int, int], None]


@contextmanager
def progress_bar() -> Iterator[Tell]:
    """Yield what is told: what is done, how much of it, and of how much."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def tell(what: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=max(total, 1), description=what)

        yield tell
