"""A damaged workdir is either used as if it were whole, or one message names what is damaged; nothing good is deleted.

python benchmarks/reliability/damage.py [--only=TEXT] [--out=FILE]

A small run is stopped after step 36 of 40. Every kind of damage (kinds.py) is done to a copy of its workdir, which
train.py and eval.py then meet, and to that of an evaluation that was interrupted. A program recovers if it ends with
the bits of a run that nothing disturbed; it stops well with one message that names the file and exit status 2, and then
every file is as it was. Disks that are full or fill up are imitated by a limit on the size of files.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import kinds
import programs
import results
from absl import flags
from kinds import BEST, LAST, NEWER, OLDER, Kind

RECOVERED, STOPPED, FAILED = "recovers", "stops with a message", "fails"
COLUMNS = ("damage", "train.py", "eval.py")


def stopped_run(config: Path, workdir: Path) -> None:
    """A run that gets SIGTERM after step 36."""
    from robust_jax.training import log

    tick = log.TrainingLog.tick

    def stop(self: log.TrainingLog, steps: int = 1) -> None:
        tick(self, steps)
        done = getattr(self, "done", self._start) + steps
        self.done = done  # type: ignore[attr-defined]
        if done == NEWER:
            os.kill(os.getpid(), signal.SIGTERM)

    log.TrainingLog.tick = stop  # type: ignore[method-assign]
    programs.script("train.py", [f"--config={config}", f"--workdir={workdir}"])


def interrupted_evaluation(workdir: Path) -> None:
    """An evaluation that is killed after its first attack."""
    from robust_jax.evaluation import outcome_cache

    make = outcome_cache.saver

    def saver(*arguments: Any) -> Callable[..., None]:
        save = make(*arguments)

        def save_and_end(*arguments: Any) -> None:
            save(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)

        return save_and_end

    outcome_cache.saver = saver
    programs.script("eval.py", [f"--workdir={workdir}"])


def in_turn(calls: Sequence[tuple[str, list[str]]], before: Callable[[], None]) -> None:
    """Runs programs in one process, so that JAX starts once; prints the exit status of each."""
    before()
    for name, arguments in calls:
        status: Any = 0
        try:
            programs.script(name, arguments)
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
            status = 1
        print(f"\nSTATUS {status}", flush=True)
        for flag in ("config", "workdir", "distributed", "trust"):
            if flag in flags.FLAGS:
                delattr(flags.FLAGS, flag)


def limit_files(size: int) -> None:
    """No file grows beyond a number of bytes: what is written then fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def limit_while_training() -> None:
    """The limit begins at the first step."""
    from robust_jax.training import log

    tick = log.TrainingLog.tick

    def limited(self: log.TrainingLog, steps: int = 1) -> None:
        limit_files(1000)
        tick(self, steps)

    log.TrainingLog.tick = limited  # type: ignore[method-assign]


def files(folder: Path) -> dict[str, str]:
    """A digest of every file, by its path; of a link, where it leads."""
    found = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file() and ".lock" not in name and "tfevents" not in name:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


class Judge:
    """What the programs should leave, and whether they did."""

    def __init__(self, folder: Path):
        self.folder, self.config = folder, folder / "mine.py"
        settings = dict(epochs=4.0, validate=2.0)
        programs.write_config(self.config, **settings)
        self.good, self.whole = folder / "good", folder / "whole"
        self._train(self.config, self.good, 143)
        shutil.copytree(self.good, self.whole)
        self._run(programs.script, "train.py", [f"--config={self.config}", f"--workdir={self.whole}"])
        self.trained = self._leaves(self.whole, LAST)
        self.numbers = self._numbers()
        self._run(interrupted_evaluation, self.good, status=-9)
        assert list(self.good.glob("evaluation_unfinished/*.npz"))
        self.others = [folder / "other_seed", folder / "other_config"]
        for other, (old, new) in zip(self.others, (("c.epochs", "c.seed = 3; c.epochs"), ("0.9", "0.8")), strict=True):
            config = folder / f"{other.name}.py"
            config.write_text(self.config.read_text().replace(old, new, 1))
            self._train(config, other, 143)

    def _run(self, *call: Any, status: int = 0) -> None:
        ended = programs.Program(*call).ended()
        assert ended.status == status, ended

    def _train(self, config: Path, workdir: Path, status: int) -> None:
        self._run(stopped_run, config, workdir, status=status)

    def _leaves(self, workdir: Path, step: int) -> Any:
        from robust_jax.workdir import integrity

        notes = integrity.read(workdir / "checkpoints" / "latest" / str(step))
        assert notes is not None
        return notes["leaves"]

    def _numbers(self) -> dict[int, Any]:
        """What evaluations of the checkpoints find, by their steps."""
        found = {}
        for step in (BEST, OLDER, NEWER):
            workdir = self.folder / f"only_{step}"
            shutil.copytree(self.good, workdir)
            for path in workdir.glob("checkpoints/*/*"):
                if path.name != str(step):
                    shutil.rmtree(path)
            kind = "best" if step == BEST else "latest"
            arguments = [f"--workdir={workdir}", f"--config.evaluation.checkpoint={kind}"]
            self._run(programs.script, "eval.py", arguments)
            found[step] = self._measured(workdir)
        return found

    def _measured(self, workdir: Path) -> Any:
        from robust_jax.evaluation.stored import evaluations

        (report,) = evaluations(workdir).values()
        accuracies = {name: attack["accuracy"] for name, attack in report["attacks"].items()}
        return [report["checkpoint_step"], report["clean"]["accuracy"], accuracies]

    def meet(self, kind: Kind, before: Callable[[], None] = lambda: None) -> dict[str, str]:
        """What each program does with the damage: an entry of the table, and for failures why."""
        calls, folders, snapshots = [], {}, {}
        for name in kind.programs:
            workdir = folders[name] = self.folder / f"{name[0]}" / "run"
            shutil.rmtree(workdir.parent, ignore_errors=True)
            shutil.copytree(self.good, workdir)
            kind.do(workdir)
            snapshots[name] = files(workdir.parent)
            config = [f"--config={self.config}"] if name == "train.py" else []
            calls.append((name, [*config, f"--workdir={workdir}"]))
        try:
            ended = programs.Program(in_turn, calls, before).ended(100)
            printed = ended.printed.split("\nSTATUS ")
        except TimeoutError as error:
            ended, printed = programs.Ended(-9, str(error)), [str(error)]
        found, status = {}, ""
        for i, name in enumerate(kind.programs):
            text = printed[i].partition("\n")[2] if i else printed[0]
            status = printed[i + 1].split("\n")[0] if i + 1 < len(printed) else f"ended with {ended.status}"
            found[name] = self._judge(kind, name, folders[name], snapshots[name], status, text)
        return found

    def _judge(self, kind: Kind, name: str, workdir: Path, before: dict[str, str], status: str, text: str) -> str:
        after = files(workdir.parent)
        if "Traceback" in text or status not in ("0", "2"):
            return f"{FAILED}: status {status}: {text[-1500:]}"
        if status == "2":
            message = next((line for line in text.splitlines() if line.startswith(f"{name}: ")), "")
            if kind.file not in message or str(workdir) not in message:
                return f"{FAILED}: the message does not name {kind.file}: {text[-1500:]}"
            changed = [path for path in before if before[path] != after.get(path)]
            return f"{FAILED}: it stopped and changed {changed}" if changed else STOPPED
        return self._recovered(name, workdir, before, after) or RECOVERED

    def _recovered(self, name: str, workdir: Path, before: dict[str, str], after: dict[str, str]) -> str:
        """What is wrong with a program's result, or nothing."""
        if name == "eval.py":
            measured = self._measured(workdir)
            return "" if measured == self.numbers.get(measured[0]) else f"{FAILED}: wrong numbers, {measured}"
        if self._leaves(workdir, LAST) != self.trained:
            return f"{FAILED}: other weights"
        replaced = set(files(self.good).values())  # good checkpoints, which training replaces, or keeps
        names = ("checkpoints/", "metrics.jsonl")
        lost = [p for p, digest in before.items() if any(n in p for n in names) and digest not in after.values()]
        lost = [p for p in lost if before[p] not in replaced and "tmp" not in p and "metrics.jsonl" not in p]
        return f"{FAILED}: {lost} are gone" if lost else ""


def main() -> None:
    """Prints the table; exit status 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="kinds whose names contain this")
    parser.add_argument("--out", default="", help="a JSON file")
    options = parser.parse_args()
    rows, counts = [], collections.Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        programs.prepare(Path(name))
        judge = Judge(Path(name))
        full = Kind("a disk that is full", lambda w: None, "run")
        filling = Kind("a disk that fills up while training", lambda w: None, "run", ("train.py",))
        every: list[tuple[Kind, Callable[[], None]]] = [(k, lambda: None) for k in kinds.all_kinds(*judge.others)]
        every += [(full, lambda: limit_files(2000)), (filling, limit_while_training)]
        for kind, before in every:
            if options.only not in kind.name:
                continue
            found = judge.meet(kind, before)
            for program, text in found.items():
                counts[f"{program} {text.split(':')[0]}"] += 1
                if text.startswith(FAILED):
                    print(f"{kind.name}, {program}: {text}", file=sys.stderr, flush=True)
            rows.append([kind.name, *(found.get(n, "").split(":")[0] for n in ("train.py", "eval.py"))])
            print(rows[-1], file=sys.stderr, flush=True)
    failed = sum(n for name, n in counts.items() if name.endswith(FAILED))
    results.report(COLUMNS, rows, options.out, kinds=len(rows), counts=dict(sorted(counts.items())), failed=failed)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
