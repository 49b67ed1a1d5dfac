"""What a result was measured with, for its JSON file."""

from __future__ import annotations

import os
import platform
from typing import Any

from robust_jax.evaluation.measure import versions


def described(command: str) -> dict[str, Any]:
    """The command, the hardware and the versions."""
    return {"command": command, "hardware": f"{platform.machine()}, {os.cpu_count()} cores", "versions": versions()}
