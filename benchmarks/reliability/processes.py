"""What a signal to one process of a multi-process run does: `python benchmarks/reliability/processes.py`.

Runs 2 and 4 processes on this machine's CPUs, sends SIGKILL, SIGTERM, SIGINT or SIGSTOP to the first or to another one,
and measures the seconds until all have ended, their exit codes, and whether they said why. Then all are started again,
and the end is compared with an undisturbed run, bit by bit. A stopped process is continued after the others have ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import flags
from workdirs import ROOT, about, same_end, steps_done

from robust_jax import cli, files

flags.DEFINE_list("counts", ["2", "4"], "Of processes.")
flags.DEFINE_list("signals", ["SIGKILL", "SIGTERM", "SIGINT", "SIGSTOP"], "Sent to one of them.")
flags.DEFINE_string("out", "", "A JSON file for the figures.")

LIMIT = 120  # seconds after which processes that are left are killed
SETTINGS = (
    "--config=configs/digits_standard.py", "--config.model.name=mlp", "--config.epochs=24", "--config.batch_size=64",
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
    agreed = name in ("SIGTERM", "SIGINT")
    expected = "saved step" if agreed else f"process {victim} of {count} was lost"
    saved = steps_done(workdir)
    again = Job(workdir, count)
    again.wait()
    return {
        "processes": count, "signal": name, "to": victim, "seconds": round(seconds, 1), "codes": codes,
        "told": sum(expected in printed[i] for i in others), "others": len(others),
        "stack_traces": sum("stack trace" in text or "Traceback" in text for text in printed.values()),
        "logged_before": saved, "same_bits": set(again.codes().values()) == {0} and same_end(workdir, undisturbed),
    }  # fmt: skip


def mistakes(folder: Path) -> list[dict[str, Any]]:
    """Cases without a signal: an error in one process, one that never starts, a host that is unknown."""
    found = []
    for name, jobs in {
        "an error in one process": lambda w: _with_an_error(w),
        "one never starts": lambda w: Job(w, 2, "--join_timeout=15", only=0),
        "the first never starts": lambda w: Job(w, 2, "--join_timeout=15", only=1),
        "a host that is unknown": lambda w: Job(w, 2, only=1, address="no-such-host.invalid:1234"),
    }.items():
        job = jobs(folder / name.replace(" ", "_"))
        seconds = job.wait()
        last = {i: (text.strip().splitlines() or [""])[-1] for i, text in job.output().items()}
        traces = sum("stack trace" in text or "Traceback" in text for text in job.output().values())
        found.append(
            {"case": name, "seconds": round(seconds, 1), "codes": job.codes(), "said": last, "stack_traces": traces}
        )
    return found


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
    rows = []
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
                    rows.append(disturbed(folder, count, sent, victim, undisturbed))
                    print(rows[-1], flush=True)
        cases = mistakes(folder)
    found = {"rows": rows, "mistakes": cases} | about(f"python benchmarks/reliability/{Path(__file__).name}")
    if options.out:
        files.write_atomically(Path(options.out), (json.dumps(found, indent=1) + "\n").encode())
    print(table(found))


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    columns = (
        "processes | signal | to | seconds until all ended | exit codes | others that said why | same bits in the end"
    )
    lines = [f"| {columns} |", "|---" * 7 + "|"]
    for r in found["rows"]:
        codes = ", ".join(str(code) for code in r["codes"].values())
        told, same = f"{r['told']} of {r['others']}", "yes" if r["same_bits"] else "NO"
        lines.append(f"| {r['processes']} | {r['signal']} | {r['to']} | {r['seconds']} | {codes} | {told} | {same} |")
    lines += ["", "| case | seconds | exit codes | the last line of each |", "|---|---|---|---|"]
    for case in found["mistakes"]:
        codes, said = (", ".join(map(str, case[key].values())) for key in ("codes", "said"))
        lines.append(f"| {case['case']} | {case['seconds']} | {codes} | {said} |")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
