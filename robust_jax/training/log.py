"""What a training run reports: metrics.jsonl, TensorBoard events, and a progress bar or one line per epoch."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from robust_jax import files, parallel


class TrainingLog:
    """Writes while the run goes on; only process 0 of a multi-host run writes anything."""

    def __init__(self, workdir: Path, start: int, total_steps: int, steps_per_epoch: float):
        self._path, self._start, self._total = workdir / "metrics.jsonl", start, total_steps
        self._steps_per_epoch = steps_per_epoch
        self._active = parallel.is_main()
        self._latest: dict[str, float] = {}
        self._began = self._since = time.perf_counter()
        self._ticks = 0
        if self._active:
            _drop_lines_after(self._path, start)

    def __enter__(self) -> TrainingLog:
        if self._active:
            from tensorboardX import SummaryWriter  # here, because it imports PyTorch if that is installed: seconds

            self._file = files.open_to_append(self._path)
            self._events = SummaryWriter(str(self._path.parent), purge_step=self._start + 1)
            # A bar on a terminal; elsewhere `write` prints a line per epoch.
            self._bar = tqdm(
                total=self._total, initial=self._start, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty()
            )
        return self

    def __exit__(self, *_: Any) -> None:
        if self._active:
            self._bar.close()
            self._events.close()
            self._file.close()

    def tick(self, steps: int = 1) -> None:
        """Records ``steps`` dispatched steps."""
        self._ticks += steps
        if self._active:
            self._bar.update(steps)

    @property
    def rate(self) -> float:
        """Steps per second between the last two log steps, 0 before the first."""
        return self._latest.get("steps_per_second", 0.0)

    def write(self, step: int, values: Mapping[str, float], epoch: float | None = None) -> None:
        """Writes the numbers of a log step, or with an epoch those of a validation, after which it prints a line."""
        now = time.perf_counter()
        rate = {} if epoch is not None else {"steps_per_second": self._ticks / max(now - self._since, 1e-9)}
        self._since, self._ticks = now, 0
        values = {**values, **rate}
        self._latest |= values
        if not self._active:
            return
        self._file.write(json.dumps({"step": step, "epoch": round(step / self._steps_per_epoch, 4), **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        shown = {
            _short(k): f"{v:.4g}" for k, v in self._latest.items() if k not in ("steps_per_second", "learning_rate")
        }
        self._bar.set_postfix(shown, refresh=False)
        if epoch is not None and self._bar.disable:
            left = (now - self._began) / (step - self._start) * (self._total - step)
            numbers = "  ".join(f"{k} {v}" for k, v in shown.items())
            print(
                f"epoch {epoch:.4g}  step {step}/{self._total}  {numbers}  {self.rate:.3g} steps/s  {left:.0f} s left",
                flush=True,
            )


def _short(name: str) -> str:
    return name.removeprefix("terms/").replace("validation/", "val ")


def _drop_lines_after(path: Path, step: int) -> None:
    """Removes what a killed run logged after its last checkpoint: those steps run again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:  # half a line: the run was killed while it wrote
            continue
    files.write_atomically(path, "".join(line + "\n" for line in kept).encode())
