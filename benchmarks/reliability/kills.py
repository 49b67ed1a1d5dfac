"""Training and evaluation, killed again and again, end as if nothing had happened.

python benchmarks/reliability/kills.py [--kills=30] [--evaluations=10] [--seed=0] [--out=FILE]

A small network is trained and killed by SIGKILL: at a random time, or while a checkpoint is being written (a temporary
folder has appeared); started again and killed again, several times a run. The same with SIGTERM, and with SIGKILL
during evaluations. In the end checkpoints, metrics and results are compared with those of runs that nothing disturbed.
The steps that a kill costs are counted by a note that the process itself makes of each.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import programs
import results

COLUMNS = (
    "what", "kills", "while a checkpoint or outcome was written", "while starting", "ended by themselves",
    "most steps lost", "steps lost in all", "wrong exits", "runs", "runs that differ",
)  # fmt: skip


class Runs:
    """Runs of one config, killed and started again until they end."""

    def __init__(self, folder: Path, draw: random.Random):
        self.folder, self.draw, self.found = folder, draw, collections.Counter[str]()
        self.config, self.steps = folder / "mine.py", folder / "steps"
        programs.write_config(self.config, attacks=5)
        self.whole = folder / "whole"
        self.start("train.py", self.whole).ended()  # compiles
        for path in (self.whole, self.steps):
            path.rename(path.with_name(f"{path.name} before"))
        began = time.monotonic()
        assert self.start("train.py", self.whole).ended().status == 0
        self.seconds = time.monotonic() - began

    def start(self, name: str, workdir: Path) -> programs.Program:
        """One of the programs, on a workdir."""
        config = [f"--config={self.config}"] if name == "train.py" else []
        return programs.Program(programs.script, name, [*config, f"--workdir={workdir}"], str(self.steps))

    def noted(self) -> tuple[int, int]:
        """The step after which the newest process began, and the last one that it did; -1 if it did not begin."""
        text = self.steps.read_text() if self.steps.exists() else ""
        lines = text.rpartition("start ")[2].split() or ["-1"]
        return int(lines[0]), int(lines[-1])

    def train(self, workdir: Path, number: signal.Signals, kills: int) -> int:
        """One run, with at most so many kills before it is left alone; how many there were."""
        done = 0
        while done < kills:
            self.steps.unlink(missing_ok=True)
            process = self.start("train.py", workdir)
            while process.running() and self.noted()[0] < 0 and self.draw.random() > 0.002:
                time.sleep(0.005)
            if self.draw.random() < 0.6:
                wait_for_a_write(process, workdir / "checkpoints", self.draw.randrange(6))
                time.sleep(self.draw.uniform(0, 0.02))
            else:
                time.sleep(self.draw.uniform(0, self.seconds / 3))
            self.send(process, number, workdir)
            done += self.judge(process.ended(), number, workdir)
            if newest(workdir) == newest(self.whole) == self.noted()[1]:
                break
        ended = self.start("train.py", workdir).ended()
        self.found["runs"] += 1
        self.found["differ"] += ended.status != 0 or differences(workdir, self.whole) != []
        for text in [*([ended.printed] if ended.status else []), *differences(workdir, self.whole)]:
            print(f"{workdir}: {text}", file=sys.stderr)
        return done

    def send(self, process: programs.Program, number: signal.Signals, workdir: Path) -> None:
        """Kills it; the process is not looked at in between."""
        process.send(number)
        if number == signal.SIGKILL:
            process.ended()
            self.found["writing"] += any(workdir.glob("checkpoints/*/*orbax-checkpoint-tmp*"))
        else:
            self.found["writing"] += process.running() and any(workdir.glob("checkpoints/*/*orbax-checkpoint-tmp*"))

    def judge(self, ended: programs.Ended, number: signal.Signals, workdir: Path) -> bool:
        """Counts a kill and what it cost; False if the run ended before."""
        began, last = self.noted()
        if ended.status == 0:
            self.found["by themselves"] += 1
            return False
        self.found["kills"] += 1
        if began < 0 or last == began:
            self.found["starting"] += 1
        if number == signal.SIGTERM and ended.status == 128 + number:
            saved = f"SIGTERM: saved step {last} of 120 in {workdir}; start again to resume."
            right = saved in ended.printed and newest(workdir) == last
        else:
            right = ended.status == -number and (number == signal.SIGKILL or last in (began, -1))
        if not right:
            self.found["wrong"] += 1
            print(f"{workdir}: status {ended.status}, did step {last}:\n{ended.printed}", file=sys.stderr)
        lost = last - newest(workdir) if began >= 0 else 0
        self.found["lost"] += lost
        self.found["most"] = max(self.found["most"], lost)
        return True

    def evaluate(self, workdir: Path, kills: int) -> int:
        """One evaluation, killed a number of times and then left alone; returns the number."""
        done = 0
        while done < kills:
            process = self.start("eval.py", workdir)
            if self.draw.random() < 0.5:
                wait_for_a_write(process, workdir / "evaluation_unfinished", self.draw.randrange(4), ".npz")
            else:
                time.sleep(self.draw.uniform(0, 1.2 * self.seconds_of_evaluation))
            process.send(signal.SIGKILL)
            if process.ended().status == 0:
                self.found["by themselves"] += 1
                break
            done += 1
            self.found["kills"] += 1
            self.found["writing"] += any(workdir.glob("evaluation_unfinished/.*.tmp"))
            self.found["starting"] += not (workdir / "evaluation_unfinished").exists()
        ended = self.start("eval.py", workdir).ended()
        self.found["runs"] += 1
        different = measured(workdir) != measured(self.whole) or (workdir / "evaluation_unfinished").exists()
        self.found["differ"] += ended.status != 0 or different
        if ended.status or different:
            print(f"{workdir}: differs\n{ended.printed}", file=sys.stderr)
        return done

    def row(self, what: str, trains: bool) -> list[Any]:
        """The counts of the table, which begin again."""
        names = ("kills", "writing", "starting", "by themselves", "most", "lost", "wrong", "runs", "differ")
        empty = () if trains else ("most", "lost")
        row = [what, *("" if name in empty else self.found[name] for name in names)]
        print(row, file=sys.stderr, flush=True)
        self.found.clear()
        return row

    def measure_evaluation(self) -> None:
        """Evaluates the undisturbed run, twice, the second time for its duration."""
        for _ in range(2):
            began = time.monotonic()
            assert self.start("eval.py", self.whole).ended().status == 0
            self.seconds_of_evaluation = time.monotonic() - began


def wait_for_a_write(process: programs.Program, folder: Path, count: int, mark: str = "orbax-checkpoint-tmp") -> None:
    """Returns when a temporary file or folder of another name has appeared there for so many times, or at the end."""
    seen: set[str] = set()
    while process.running() and len(seen) <= count:
        names = [path.name for pattern in ("*", "*/*") for path in folder.glob(pattern)]
        seen |= {name for name in names if mark in name}
        time.sleep(0.0005)


def newest(workdir: Path) -> int:
    """The step of the newest latest checkpoint, 0 without one."""
    return max((int(p.name) for p in workdir.glob("checkpoints/latest/*") if p.name.isdigit()), default=0)


def differences(workdir: Path, whole: Path) -> list[str]:
    """What differs between a run and the undisturbed one."""
    found = []
    if lines(workdir) != lines(whole):
        found.append("metrics.jsonl differs")
    steps = [line["step"] for line in lines(workdir) if "loss" in line]
    if steps != sorted({*steps}):
        found.append("metrics.jsonl repeats steps")
    if checksums(workdir) != checksums(whole):
        found.append("the checkpoints differ")
    left = [p for p in workdir.rglob("*") if "tmp" in p.name.replace("tmpdir", "") or p.name.startswith(".probe")]
    if left:
        found.append(f"left behind: {[str(p.relative_to(workdir)) for p in left]}")
    return found


def lines(workdir: Path) -> list[dict[str, Any]]:
    """The metrics, without how fast they were."""
    text = (workdir / "metrics.jsonl").read_text()
    return [{k: v for k, v in json.loads(line).items() if k != "steps_per_second"} for line in text.splitlines()]


def checksums(workdir: Path) -> dict[str, Any]:
    """Of all leaves of the checkpoints that a finished run leaves, restored and verified in a process of its own."""
    with tempfile.NamedTemporaryFile() as file:
        ended = programs.Program(_write_checksums, workdir, file.name).ended()
        assert ended.status == 0, ended.printed
        return dict(json.loads(Path(file.name).read_text()))


def _write_checksums(workdir: Path, out: str) -> None:
    from robust_jax.workdir import checkpoints, integrity

    with checkpoints.opened(workdir) as saved:
        found = {kind: saved.newest((kind,)) for kind in checkpoints.KINDS}
    content = {kind: [one.step, integrity.checksums(one.state)] for kind, one in found.items()}
    Path(out).write_text(json.dumps(content))


def measured(workdir: Path) -> Any:
    """The one evaluation without its durations and the workdir's name, and the bytes of ``per_example.npz``."""
    from robust_jax.evaluation import stored

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if "seconds" not in k and k != "workdir"}
        return [timeless(v) for v in value] if isinstance(value, list) else value

    import numpy as np

    ((name, report),) = stored.evaluations(workdir).items()
    with np.load(stored.folder_of(workdir, name) / stored.EXAMPLES) as arrays:
        content = {name: arrays[name].tobytes() for name in arrays}
    return timeless(report), content


def main() -> None:
    """Prints the table; exit status 1 if anything differed or was lost that should not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="of each signal, during training")
    parser.add_argument("--evaluations", type=int, default=10, help="kills during evaluations")
    parser.add_argument("--per_run", type=int, default=6, help="the most kills of one run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="", help="a JSON file")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        programs.prepare(Path(name))
        runs = Runs(Path(name), random.Random(options.seed))
        for number in (signal.SIGKILL, signal.SIGTERM):
            done = count = 0
            while done < options.kills:
                workdir = Path(name) / f"{number.name}_{count}"
                done += runs.train(workdir, number, min(options.per_run, options.kills - done))
                count += 1
            rows.append(runs.row(f"training, {number.name}", trains=True))
        runs.measure_evaluation()
        done = count = 0
        while done < options.evaluations:
            workdir = Path(name) / f"evaluated_{count}"
            assert runs.start("train.py", workdir).ended().status == 0
            done += runs.evaluate(workdir, min(options.per_run, options.evaluations - done))
            count += 1
        rows.append(runs.row("evaluation, SIGKILL", trains=False))
    results.report(COLUMNS, rows, options.out, options.seed, interval={"steps": 7, "of": 120})
    by_name = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    wrong = sum(row["wrong exits"] + row["runs that differ"] for row in by_name)
    sys.exit(bool(wrong or by_name[1]["steps lost in all"]))


if __name__ == "__main__":
    main()
