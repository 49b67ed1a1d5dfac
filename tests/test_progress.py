"""The bar on a pseudo terminal: nothing wraps, and what others print stands on lines of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"

TRAINING = """
import logging, sys, warnings
from pathlib import Path
from absl import logging as absl_logging
from robust_jax.training.log import TrainingLog

with TrainingLog(Path(sys.argv[1]), 0, 93750, 9375.0, writers=()) as log:
    for step in range(375, 93751, 375):
        log.tick(375)
        log.write(step, {"loss": 1 / step, "accuracy": 0.1, "terms/cross_entropy": 2.5, "terms/fgr": 3e-7})
        if step == 750:
            warnings.warn("the first warning", DeprecationWarning)
            absl_logging.warning("the second warning")
            logging.getLogger("library").warning("the third warning")
            print("printed", end=", ")
            print("in two parts")
        if step % 18750 == 0:
            values = {"validation/clean": 0.98125, "validation/a_long_name_of_an_attack": 0.7654321}
            log.write(step, values, epoch=step / 9375)
absl_logging.warning("after the bar")
"""
EVALUATION = """
from robust_jax.evaluation.measure import _Lines
from robust_jax.progress import Bar

with Bar(750, unit="image", title="a_run_with_quite_a_long_name", keep=False) as bar:
    lines = _Lines(bar, 250, ["an_attack_whose_name_is_long_but_useful"])
    for name in ("clean", "an_attack_whose_name_is_long_but_useful"):
        for part in range(5):
            lines(name, 40, 50)
            if name != "clean":
                lines(f"{name} x 0.5", 45, 50)
    bar.phase("checking for masked gradients: huge_radius")
    bar.phase("checking for masked gradients: square_is_stronger")
"""


def on_terminal(code, columns, *arguments):
    """What a program writes to a terminal of this width."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=its, stdout=its, stderr=its,
        env=environment | {"PYTHONPATH": str(SRC), "JAX_PLATFORMS": "cpu", "TERM": "xterm"},
    )  # fmt: skip
    os.close(its)
    written = b""
    while True:
        try:
            if not (part := os.read(ours, 65536)):
                break
        except OSError:  # the other end is closed
            break
        written += part
    os.close(ours)
    assert process.wait() == 0, written.decode()
    return written.decode()


def lines_on(written, columns):
    """The lines as they stand on the screen at last; all that was ever on them is within the width."""
    lines, begun = [""], 0
    for piece in re.findall(r"\r\n|\r|\n|\x1b\[[\d;?]*[A-Za-z]|[^\r\n\x1b]+", written):
        if "\n" in piece:
            lines.append("")
            begun = 0
        elif piece == "\r":
            begun = 0
        elif piece.startswith("\x1b"):
            assert re.fullmatch(r"\x1b\[[\d;]*m", piece), repr(piece)  # colours, which take no room
        else:
            assert begun + len(piece) <= columns, piece
            lines[-1] = lines[-1][:begun] + piece + lines[-1][begun + len(piece) :]
            begun += len(piece)
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("columns", [80, 60])
def test_training_leaves_a_line_for_each_validation_and_warnings_stand_above_the_bar(columns, tmp_path):
    lines = lines_on(on_terminal(TRAINING, columns, tmp_path), columns)
    validations = [line for line in lines if line.startswith("epoch ")]
    assert [line.split("  ")[:3] for line in validations] == [
        [f"epoch {e}", f"step {9375 * e}/93750", "val clean 0.9812"] for e in (2, 4, 6, 8, 10)
    ]
    assert ("val a_long_name_of_an_attack" in validations[0]) == (columns == 80)
    for text in ("the first warning", "the second warning", "the third warning", "after the bar"):
        (line,) = [line for line in lines if line.endswith(text)]
        assert "%|" not in line and "step" not in line
    assert "printed, in two parts" in lines
    (bar,) = [line for line in lines if "%|" in line]
    assert bar.startswith("100%|") and "val clean 0.9812" in bar


@pytest.mark.parametrize("columns", [80, 60])
def test_an_evaluation_leaves_a_line_for_each_attack_and_names_its_checks(columns):
    written = on_terminal(EVALUATION, columns)
    lines = [line for line in lines_on(written, columns) if line]
    assert [line.split(":")[0] for line in lines] == ["clean", "an_attack_whose_name_is_long_but_useful"]
    assert "80.0% of 250 images right" in lines[0]
    assert "checking for masked gradients: huge" in written and "%|" in written


def test_a_log_file_gets_no_bar(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, str(tmp_path)], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(SRC)},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0] == "printed, in two parts" and [line[:5] for line in lines[1:]] == ["epoch"] * 5
    assert "steps/s" in lines[1] and "s left" in lines[1] and "%|" not in done.stderr
