"""Numbers and times as people read them, and text that a terminal can show."""

import itertools
import os
import sys
from collections.abc import Sequence

UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def span(seconds: float | int) -> str:
    """A time that something took.

    >>> span(0.25), span(12.3), span(150), span(4000), span(200_000)
    ('0.2 s', '12 s', '2 min 30 s', '1 h 6 min', '2 d 7 h')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for (unit, name), (next_unit, next_name) in itertools.pairwise(UNITS):
        if whole >= unit:
            rest = whole % unit // next_unit
            return f"{whole // unit} {name}" + (f" {rest} {next_name}" if rest else "")
    return f"{whole} s"


def ago(seconds: float | int) -> str:
    """How long something is past.

    >>> ago(0.4), ago(59), ago(7300), ago(-5)
    ('now', '59 s ago', '2 h ago', 'now')
    """
    for unit, name in UNITS:
        if seconds >= unit:
            return f"{int(seconds // unit)} {name} ago"
    return "now"


def size(count: float | int) -> str:
    """Of a file.

    >>> size(512), size(2_500_000), size(7.1e9)
    ('512 B', '2.5 MB', '7.1 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def number(value: object) -> str:
    """A value of a table: floats with four digits, `-` for none.

    >>> number(0.123456), number(7), number(None), number([1, 2])
    ('0.1235', '7', '-', '[1, 2]')
    """
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def printable(text: str) -> str:
    """On one line, and without what would steer a terminal.

    >>> printable("two\\n  lines"), printable("a\\x1b[31mb")
    ('two lines', 'a?[31mb')
    """
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def aligned(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Rows as lines with columns below one another, those of `right` flush right.

    >>> aligned([["run", "step"], ["a", "5/10"], ["long", "10/10"]], right=[1])
    ['run    step', 'a      5/10', 'long  10/10']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    kinds = [">" if i in right else "<" for i in range(len(widths))]
    pattern = "  ".join(f"{{:{kind}{width}}}" for kind, width in zip(kinds, widths, strict=True))
    return [pattern.format(*row).rstrip() for row in rows]


def emit(text: str) -> None:
    """Print on stdout, of which a reader such as `head` may want only the beginning."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
