"""What a signal to one process of a multi-process run does: `python benchmarks/reliability/processes.py`.

Runs 2 and 4 processes on this machine's CPUs, sends SIGKILL, SIGTERM, SIGINT or SIGSTOP to the first or to another one,
and measures the seconds until all have ended, their exit codes, and whether they said why. Then all are started again,
and the end is compared with an undisturbed run, bit by bit. A stopped process is continued after the others have ended.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import results
from absl import flags
from workdirs import ROOT, same_end, steps_done

from robust_jax import cli

flags.DEFINE_list("counts", ["2", "4"], "Of processes.")
flags.DEFINE_list("signals", ["SIGKILL", "SIGTERM", "SIGINT", "SIGSTOP"], "Sent to one of them.")
flags.DEFINE_string("out", "", "A JSON file for the figures.")

COLUMNS = ("what", "seconds to the end of all", "exit codes", "others that said why", "the same bits after a restart")
LIMIT = 120  # seconds after which processes that are left are killed
SETTINGS = (
    "--config=digits_standard", "--config.model.name=mlp", "--config.epochs=24", "--config.batch_size=64",
    "--config.log_every_steps=10", "--config.checkpoint_every_steps=100", "--config.eval_every_epochs=12",
)  # fmt: skip
STEP = 250  # the signal is sent after it


class Job:
    """The processes of one run, started; each writes to its own log beside the workdir."""

    def __init__(self, workdir: Path, count: int, *extra: str, only: int | None = None, address: str = ""):
        self.workdir = workdir
        indices = range(count) if only is None else [only]
        self.logs = {i: workdir.with_suffix(f".{i}.log") for i in indices}
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
        command = [sys.executable, "train.py", f"--workdir={workdir}", *SETTINGS, *extra]
        address = address or f"127.0.0.1:{_free_port()}"
        self.processes = {
            i: subprocess.Popen(
                [*command, f"--distributed={address},{count},{i}"],
                cwd=ROOT, env=environment, stdout=log.open("wb"), stderr=subprocess.STDOUT, start_new_session=True,
            )
            for i, log in self.logs.items()
        }  # fmt: skip

    def output(self) -> dict[int, str]:
        """What each process has printed."""
        return {i: log.read_text(errors="replace") for i, log in self.logs.items()}

    def codes(self) -> dict[int, int | None]:
        """Each process's exit code, None while it runs."""
        return {i: process.poll() for i, process in self.processes.items()}

    def wait_for_step(self, step: int, limit: float = 300) -> None:
        """Returns once the run has logged that step."""
        end = time.monotonic() + limit
        while steps_done(self.workdir) < step:
            if time.monotonic() > end or any(code is not None for code in self.codes().values()):
                raise RuntimeError(f"step {step} was not reached: {self.output()}")
            time.sleep(0.02)

    def wait(self, but: int | None = None) -> float:
        """Seconds until all have ended, or all but one; those left after `LIMIT` are killed."""
        start = time.monotonic()
        while any(code is None and i != but for i, code in self.codes().items()):
            if time.monotonic() - start > LIMIT:
                self.kill()
                return float("inf")
            time.sleep(0.02)
        return time.monotonic() - start

    def kill(self) -> None:
        """Kills what is left."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def disturbed(folder: Path, count: int, name: str, victim: int, undisturbed: Path) -> dict[str, Any]:
    """One case: the signal, the end of all, and the run after all are started again."""
    workdir = folder / f"{count}_{name}_{victim}"
    job = Job(workdir, count)
    job.wait_for_step(STEP)
    job.processes[victim].send_signal(getattr(signal, name))
    stopped = name == "SIGSTOP"
    seconds = job.wait(but=victim if stopped else None)
    if stopped:
        job.processes[victim].send_signal(signal.SIGCONT)
        seconds = max(seconds, job.wait())
    printed, codes = job.output(), job.codes()
    others = [i for i in range(count) if i != victim]
    expected = "saved step" if name in ("SIGTERM", "SIGINT") else f"process {victim} of {count} was lost"
    again = Job(workdir, count)
    again.wait()
    same = set(again.codes().values()) == {0} and same_end(workdir, undisturbed)
    return {
        "what": f"{name} to process {victim} of {count}", "seconds": round(seconds, 1), "codes": codes,
        "told": sum(expected in printed[i] for i in others), "of": len(others), "same": "yes" if same else "NO",
        "printed": printed, "printed again": "" if same else again.output(),
    }  # fmt: skip


def mistakes(folder: Path) -> list[dict[str, Any]]:
    """Cases without a signal: an error in one process, one that never starts, a host that is unknown."""
    found = []
    for what, start, expected in (
        ("an error in one process of 2", _with_an_error, "process 1 of 2 failed: ValueError"),
        ("one of 2 never starts, --join_timeout=15", partial(_started_alone, only=0), "not all processes had joined"),
        ("the first of 2 never starts, the same", partial(_started_alone, only=1), "not all processes had joined"),
        ("a host that is unknown", partial(_started_alone, only=1, address="no-such-host.invalid:1234"), "HOST:PORT"),
    ):
        job = start(folder / str(len(found)))
        seconds, printed = job.wait(), job.output()
        told = sum(expected in text for text in printed.values())
        found.append(
            {"what": what, "seconds": round(seconds, 1), "codes": job.codes(), "told": told, "of": 1, "same": "",
             "printed": printed}
        )  # fmt: skip
    return found


def _started_alone(workdir: Path, **options: Any) -> Job:
    return Job(workdir, 2, "--join_timeout=15", **options)


def _with_an_error(workdir: Path) -> Job:
    """Two processes of which the second has a mistake in its command."""
    address = f"127.0.0.1:{_free_port()}"
    job = Job(workdir, 2, only=0, address=address)
    other = Job(workdir, 2, "--config.schedule.learning_rate=-1", only=1, address=address)
    job.processes |= other.processes
    job.logs |= other.logs
    return job


def main(options: flags.FlagValues, _: list[str]) -> None:
    """Prints a table, and writes the figures."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it, and so would the runs
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in map(int, options.counts):
            undisturbed = folder / f"undisturbed_{count}"
            whole = Job(undisturbed, count)
            whole.wait()
            if set(whole.codes().values()) != {0}:
                raise RuntimeError(f"the undisturbed run failed: {whole.output()}")
            for sent in options.signals:
                for victim in (0, count - 1):
                    found.append(disturbed(folder, count, sent, victim, undisturbed))
                    print(found[-1], file=sys.stderr, flush=True)
        found += mistakes(folder)
    traces = sum("stack trace" in t or "Traceback" in t for case in found for t in case["printed"].values())
    rows = [
        [c["what"], c["seconds"], ", ".join(map(str, c["codes"].values())), f"{c['told']} of {c['of']}", c["same"]]
        for c in found
    ]
    results.report(COLUMNS, rows, options.out, stack_traces=traces)


if __name__ == "__main__":
    cli.run(main)
