"""Where numbers come from: the command, the code's revision, the hardware, the versions of packages."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from robust_jax import parallel


def trace() -> dict[str, Any]:
    """What is written beside every number."""
    return {
        "command": portable(shlex.join(["python", *sys.argv])),
        "hardware": f"{parallel.device_count()} × {parallel.device_kind()}, {os.cpu_count()} CPU cores",
        "revision": revision(),
    }


def portable(command: str) -> str:
    """A command without what is of one machine: the data's folder, and the folders that absolute paths are in."""
    return re.sub(r"(?<=[ =,])/[^\s,]*/(?=[^\s,/]+/[^\s,/]+)", "", re.sub(r" --data_dir=\S+", "", command))


def revision() -> str:
    """The commit that the code is of, with a + if it was changed since."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = [*git, "status", "--porcelain", "--untracked-files=no", "--", ":/src", ":/benchmarks"]
    return commit + ("+" if subprocess.run(changed, capture_output=True, text=True).stdout else "")
