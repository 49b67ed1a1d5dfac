"""Signals: the first is noted, the second ends the process at once; nohup and other threads are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from robust_jax.training import stopping

WAITS = """
import os, signal, sys, time
from robust_jax.training import stopping
if "nohup" in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
with stopping.listening() as requests:
    for name in sys.argv[1].split(","):
        os.kill(os.getpid(), getattr(signal, name))
        print(requests.agreed(), flush=True)
"""


@pytest.mark.parametrize(
    "names, status, said",
    [
        ("SIGTERM", 0, ["True"]),
        ("SIGTERM,SIGTERM", -signal.SIGTERM, ["True"]),
        ("SIGHUP,SIGTERM", -signal.SIGTERM, ["True"]),
        ("SIGTERM,SIGHUP", -signal.SIGHUP, ["True"]),
        ("SIGHUP nohup", 0, ["False"]),
    ],
)
def test_the_second_signal_ends_the_process(names, status, said):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, "-c", WAITS, *names.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert (done.returncode, done.stdout.split()) == (status, said), done.stderr
    first = names.split()[0].split(",")[0]
    assert (f"{first}: finishing the steps under way" in done.stderr) == (said == ["True"])


def test_a_second_interrupt_is_a_keyboard_interrupt():
    with stopping.listening() as requests:
        os.kill(os.getpid(), signal.SIGINT)
        assert requests.agreed()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 1)
    stopped = requests.stopped("saved step 3")
    assert str(stopped) == "SIGINT: saved step 3; start again to resume." and stopped.exit_code == 130


def test_other_threads_get_no_signals():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def listen():
        with stopping.listening() as requests:
            seen.append((requests.agreed(), signal.getsignal(signal.SIGTERM) == before))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [(False, True)]
