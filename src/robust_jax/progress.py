"""Progress on a terminal, as a bar with lines above it, or in a notebook, as a widget; a log file gets neither.

The bar never wraps: of what it shows the first entries that fit are shown. While it is there, lines that others print
or log, to standard output or standard error, are written above it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from tqdm.auto import tqdm

# In a notebook it is a widget.
_IS_WIDGET = any(base.__name__ == "tqdm_notebook" for base in tqdm.__mro__)
# The first that leaves room for the first entry is taken; the bar shrinks to this length.
_FORMATS = (
    "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{remaining}, {rate_fmt}{postfix}]",
    "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{remaining}{postfix}]",
    "{desc}{percentage:3.0f}%|{bar}|{postfix}",
)
_SHORTEST = 4


class Bar:
    """A progress bar; without a terminal or notebook all of its methods do nothing.

    Args:
      total: the number of units.
      done: how many of them are done at the start.
      unit: what is counted, such as "step".
      title: stands before the bar.
      keep: whether the bar stays on the screen at the end.
      wanted: whether there should be one.

    Example::

        with Bar(100, unit="step") as bar:
            for step in range(100):
                bar.advance(1)
                bar.show({"loss": "0.12"})
            bar.line("all steps are done")
    """

    def __init__(
        self, total: int, done: int = 0, unit: str = "it", title: str = "", keep: bool = True, wanted: bool = True
    ):
        self.is_shown = wanted and (_IS_WIDGET or sys.stderr.isatty())
        self._stream = sys.stderr
        self._title = f"{_cut(title, 24)}: " if title else ""
        self._bar: Any = tqdm(
            total=total, initial=done, unit=unit, desc=self._title, leave=keep, dynamic_ncols=True,
            disable=not self.is_shown, bar_format=None if _IS_WIDGET else _FORMATS[0],
        )  # fmt: skip
        self._redirected = _Redirected(self._bar) if self.is_shown and not _IS_WIDGET else None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Ends the bar; what others print goes to the screen directly again."""
        self._bar.close()
        if self._redirected:
            self._redirected.undo()
            self._redirected = None

    @property
    def columns(self) -> int | None:
        """The width of the terminal; None of a notebook or where nothing is shown."""
        if not self._redirected:
            return None
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def advance(self, units: int) -> None:
        """Counts units as done."""
        self._bar.update(units)

    def show(self, entries: Mapping[str, str]) -> None:
        """Shows names and values beside the bar from its next change on, as many of the first ones as fit."""
        if columns := self.columns:
            for form in _FORMATS:
                self._bar.bar_format = form
                shown = _fitting(entries, columns - self._length(form) - len(", "), ", ")
                if shown or not entries:
                    break
        else:
            shown = ", ".join(map(" ".join, entries.items()))
        self._bar.set_postfix_str(shown, refresh=False)

    def phase(self, text: str) -> None:
        """Replaces the bar by what is being done and the time."""
        if columns := self.columns:
            self._bar.bar_format = "{desc} [{elapsed}]"
            room = columns - len(" [00:00:00]")
            titled = f"{self._title}{text}"
            self._bar.set_description_str(_cut(titled if len(titled) <= room else text, room))
        elif self.is_shown:
            self._bar.set_postfix_str(text)

    def line(self, text: str, entries: Mapping[str, str] = {}) -> None:
        """Prints a line above the bar: a text, cut to the terminal's width, and as many of the entries as fit."""
        if not self.is_shown:
            return
        columns = self.columns or sys.maxsize
        fitted = _fitting(entries, columns - len(text) - 2, "  ")
        print(_cut(f"{text}  {fitted}" if fitted else text, columns), flush=True)

    def _length(self, form: str) -> int:
        """The length of the bar at its shortest, without entries."""
        fields = self._bar.format_dict | {"ncols": None, "postfix": "", "bar_format": form.replace("{bar}", "")}
        return len(self._bar.format_meter(**fields)) + _SHORTEST


def _fitting(entries: Mapping[str, str], room: int, separator: str) -> str:
    """The first entries that fit."""
    shown = ""
    for name, value in entries.items():
        longer = f"{shown}{separator if shown else ''}{name} {value}"
        if len(longer) > room:
            break
        shown = longer
    return shown


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: max(length - 1, 0)]}…"


class _Redirected:
    """Standard output and error, and what logs to them, written above a bar until `undo`."""

    def __init__(self, bar: Any):
        self._streams = {"stdout": sys.stdout, "stderr": sys.stderr}
        above: dict[str, Any] = {
            name: _Above(stream, bar) if stream.isatty() else stream for name, stream in self._streams.items()
        }
        self._swaps = [
            (handler, stream, above[name])
            for handler in _handlers()
            for name, stream in self._streams.items()
            if handler.stream is stream
        ]
        for handler, _, new in self._swaps:
            handler.setStream(new)
        self._above = above
        vars(sys).update(above)

    def undo(self) -> None:
        """Gives back the streams."""
        for handler, old, new in self._swaps:
            if handler.stream is new:
                handler.setStream(old)
        for name, stream in self._streams.items():
            if vars(sys)[name] is self._above[name]:
                vars(sys)[name] = stream
            if isinstance(self._above[name], _Above):
                self._above[name].finish()


def _handlers() -> list[logging.StreamHandler[Any]]:
    """All handlers of Python's logging that write to a stream, and the one inside absl's."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = [handler for logger in loggers for handler in getattr(logger, "handlers", ())]
    inner = [getattr(handler, "python_handler", handler) for handler in dict.fromkeys(handlers)]
    return [handler for handler in inner if isinstance(handler, logging.StreamHandler)]


class _Above:
    """A stream whose complete lines are written above a bar."""

    def __init__(self, stream: TextIO, bar: Any):
        self._stream, self._bar, self._begun = stream, bar, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes the lines that are complete; the rest waits for its end."""
        lines, newline, self._begun = (self._begun + text).rpartition("\n")
        if newline:
            with self._bar.get_lock():
                self._bar.clear(nolock=True)
                self._stream.write(lines + newline)
                self._stream.flush()
                self._bar.refresh(nolock=True)
        return len(text)

    def finish(self) -> None:
        """Writes what waits for the end of its line."""
        self._stream.write(self._begun)
        self._stream.flush()
        self._begun = ""
