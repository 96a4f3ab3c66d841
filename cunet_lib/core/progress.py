"""Progress of long loops: a bar on a terminal, plain lines in a log or notebook."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator

from tqdm import tqdm


def progress(label: str, *, seconds: float = 5.0) -> Callable[[Iterable, int], Iterator]:
    """Wrapper for a loop, called with an iterable and its length.

    On a terminal it draws a bar; elsewhere it prints a line at most every ``seconds``, and one at
    the end.

    >>> list(progress("scored")(iter("ab"), 2))
    scored 2/2
    ['a', 'b']
    """

    def wrap(items: Iterable, total: int) -> Iterator:
        if sys.stderr.isatty():
            yield from tqdm(items, desc=label, total=total, leave=False)
            return
        said = time.monotonic()
        for done, item in enumerate(items, start=1):
            yield item
            if done < total and time.monotonic() - said >= seconds:
                said = time.monotonic()
                print(f"{label} {done}/{total}", flush=True)
        print(f"{label} {total}/{total}", flush=True)

    return wrap
