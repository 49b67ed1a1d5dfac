"""The page about evaluations: `report(workdirs)` reads workdirs, and shows, saves or tabulates what is in them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from robust_jax.extensions import choose
from robust_jax.files import folder_name, write_atomically
from robust_jax.options.signatures import checks_arguments

FORMATS = ("html", "csv", "latex", "markdown")


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """What workdirs hold, ready to be shown.

    A notebook displays it as its table; `save` writes the whole page.

    Attributes:
      page: everything that is shown, as plain data.
    """

    page: dict[str, Any]

    def text(self, format: str = "html") -> str:
        """The page, or the table of accuracies in another format.

        Args:
          format: "html", "csv", "latex" (with booktabs) or "markdown".

        Raises:
          ValueError: another format.
        """
        from robust_jax.evaluation.page import tables

        choose("format", format, FORMATS)
        if format == "html":
            return self._html
        written = {"csv": tables.as_csv, "latex": tables.as_latex, "markdown": tables.as_markdown}[format]
        return written(self.page["columns"])

    @cached_property
    def _html(self) -> str:
        from robust_jax.evaluation.page import render

        return render.page(self.page)

    def save(self, path: str | os.PathLike[str], format: str = "html") -> Path:
        """Writes `text` to a file, and returns its path.

        Raises:
          ValueError: another format; a path that cannot be written.
        """
        file = Path(folder_name("out", path))
        if file.is_dir() or not file.absolute().parent.is_dir():
            why = "is a folder" if file.is_dir() else "lies in a folder that does not exist"
            raise ValueError(f"out={str(file)!r} {why}: give the name of a file to write.")
        write_atomically(file, self.text(format).encode())
        return file

    def _repr_html_(self) -> str:
        from robust_jax.evaluation.page import render

        return render.table(self.page)

    def __repr__(self) -> str:
        labels = [column["label"] for column in self.page["columns"]]
        return f"Report({', '.join(labels) or 'no evaluation'})"


@checks_arguments
def report(workdirs: str | os.PathLike[str] | Sequence[Any]) -> Report:
    """What workdirs and their evaluations hold: tables, curves, examples, warnings, and how to reproduce it.

    Only files are read: nothing that they name is imported or run.

    Args:
      workdirs: a folder that `robust_jax.train` or `robust_jax.show` wrote, or several to compare.

    Returns:
      The report: ``save("report.html")`` writes one self-contained page, ``text("csv")`` is the table of accuracies; a
      notebook shows it.

    Raises:
      ValueError: no workdir, or a folder that is none.

    Example::

        rj.report(["runs/digits_standard", "runs/digits_fgr"]).save("report.html")
    """
    from robust_jax.evaluation.page.collect import collect

    return Report(collect([workdirs] if isinstance(workdirs, str | os.PathLike) else workdirs))
