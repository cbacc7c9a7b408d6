"""How far long work on images is, for whoever looks at a terminal."""

import contextlib
from collections.abc import Callable, Iterator

import rich.console
import rich.progress

Progress = Callable[[int, int], None]  # (images done, images in all)


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """Shows a bar on standard error from the first call on; a log file gets none.

    Args:
      title: what is done.

    Yields:
      What is to be told how far the work is.
    """
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(title, total=None, visible=False)
        yield lambda done, n: bar.update(task, completed=done, total=n, visible=True)
