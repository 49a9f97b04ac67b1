"""A line on the console that says how far something is and how long it will still take."""

import shutil
import sys
import time
from typing import TextIO

_BAR = 20
_REFRESH = {True: 0.2, False: 10.0}  # seconds between two pictures of the line, on a terminal and in a file


class Progress:
    """A progress bar.

    Args:
        label: What is going on.
        total: Number of steps.
        file: Where to write; None: the standard output.
        at_most: Whether it may end early, so that the time left is an upper bound.
        done: Steps that were done before, and took none of the time shown.
    """

    def __init__(self, label: str, total: int, *, file: TextIO | None = None, at_most: bool = False, done: int = 0) -> None:
        self.label = label
        self.total = total
        self.file = file or sys.stdout
        self.at_most = at_most
        self.done = self._before = done
        self._begin = time.monotonic()
        self._refresh = _REFRESH[self.file.isatty()]
        self._drawn = -self._refresh
        self._width = 0
        self._draw("")

    def advance(self, note: str = "", steps: int = 1) -> None:
        """One step is done, or several.

        Args:
            note: Something to say at the end of the line.
            steps: Their number.
        """
        self.reach(self.done + steps, note)

    def reach(self, done: int, note: str = "") -> None:
        """So many steps are done.

        Args:
            done: Their number.
            note: Something to say at the end of the line.
        """
        self.done = done
        if self.done == self.total or time.monotonic() - self._drawn >= self._refresh:
            self._draw(note)

    def close(self, note: str = "") -> None:
        """Nothing more comes: ends the line."""
        self._draw(note, closing=True)
        self.file.write("\n")
        self.file.flush()

    def _draw(self, note: str, closing: bool = False) -> None:
        self._drawn = time.monotonic()
        elapsed = self._drawn - self._begin
        share = min(self.done / self.total, 1.0) if self.total else 1.0
        bar = "#" * round(_BAR * share)
        times = f"{clock(elapsed)} elapsed"
        if self._before < self.done < self.total and not closing:
            left = elapsed * (self.total - self.done) / (self.done - self._before)
            times += f", ETA {'at most ' if self.at_most else ''}{clock(left)}"
        line = f"{self.label} [{bar:<{_BAR}}] {self.done}/{self.total}, {times}{'  ' if note else ''}{note}"
        if self.file.isatty():  # a line that wraps could not be drawn over
            line = line[: shutil.get_terminal_size().columns - 1]
        self.file.write(f"\r{line:<{self._width}}")
        self.file.flush()
        self._width = len(line)


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
