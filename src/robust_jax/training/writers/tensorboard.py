"""Event files that TensorBoard shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class tensorboard:
    """Event files in the workdir; TensorBoard hides what an earlier process wrote after the step that training goes on
    from.

    Args:
      workdir: the run's.
      config: its config.
      step: after which training goes on.
    """

    def __init__(self, workdir: Path, config: Any, step: int):
        from tensorboardX import SummaryWriter  # here, because it imports PyTorch if that is installed: seconds

        self._events = SummaryWriter(str(workdir), purge_step=step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the numbers of a step."""
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the file."""
        self._events.close()
