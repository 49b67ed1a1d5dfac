"""train.py and eval.py as a user runs them: killed and started again, on two hosts, with mistakes."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from robust_jax.evaluation.stored import evaluations
from robust_jax.workdir import checkpoints

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
    from robust_jax.config import base, complete

    def get_config():
        c = base("digits", "mlp")
        c.model.options.hidden = (16,)
        c.data.limit, c.batch_size, c.epochs, c.select_limit = 160, 16, 12.0, 32
        c.log_every_steps, c.checkpoint_every_steps = 4, 7
        c.optimizer.ema = 0.9
        c.points.warped = dict(kind="random", perturbation="flow", sigma=0.155)
        c.terms.ce = dict(kind="cross_entropy", at="warped")
        c.terms.fgr = dict(kind="gradient_norm", at="warped", perturbation="flow", weight=1.0)
        c.attacks.flow = dict(kind="pgd", perturbation="flow", radius=0.155, steps=2)
        return complete(c)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    lines = [line[4:] for line in CONFIG.splitlines()]
    (folder / "mine.py").write_text("\n".join(lines))
    return folder


def start(program, *arguments, devices=1, folder):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
        # Compiling is most of the time: little optimisation, and once for all runs.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, str(ROOT / program), *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip


def train(folder, workdir, *more, **options):
    return start("train.py", f"--config={folder}/mine.py", f"--workdir={workdir}", *more, folder=folder, **options)


def finish(process, status=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    return out, err


def states(workdir):
    with checkpoints.opened(workdir) as saved:
        return {k: (saved.step(k), saved.restore(k)) for k in checkpoints.KINDS if saved.step(k) is not None}


def lines(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    return [{k: v for k, v in json.loads(line).items() if k != "steps_per_second"} for line in text.splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(folder):
    workdir = folder / "a whole run"
    out, err = finish(train(folder, workdir))
    return workdir, out, err


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again_it_ends_with_the_same_bits(uninterrupted, folder):
    whole, out, _ = uninterrupted
    workdir = folder / "killed"
    process = train(folder, workdir)
    latest = workdir / "checkpoints" / "latest"
    deadline = time.time() + 200
    while not (latest.is_dir() and any(p.name.isdigit() for p in latest.iterdir())):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed: make the run longer"
    finish(train(folder, workdir))

    expected, found = states(whole), states(workdir)
    for kind in checkpoints.KINDS:
        assert found[kind][0] == expected[kind][0]
        assert jax.tree.structure(found[kind][1]) == jax.tree.structure(expected[kind][1])
        jax.tree.map(np.testing.assert_array_equal, found[kind][1], expected[kind][1])
    assert lines(workdir) == lines(whole)
    steps = [line["step"] for line in lines(workdir) if "loss" in line]
    assert steps == sorted(set(steps)) and steps[-1] == 120


def started(process, workdir):
    """Waits until a checkpoint is there."""
    latest, deadline = workdir / "checkpoints" / "latest", time.time() + 200
    while not (latest.is_dir() and any(p.name.isdigit() for p in latest.iterdir())):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.002)


def equal(found, expected):
    for kind in checkpoints.KINDS:
        assert found[kind][0] == expected[kind][0]
        jax.tree.map(np.testing.assert_array_equal, found[kind][1], expected[kind][1])


@pytest.mark.slow
@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)])
def test_a_signal_loses_no_step_and_no_bit(name, code, uninterrupted, folder):
    whole, *_ = uninterrupted
    workdir = folder / name
    process = train(folder, workdir)
    started(process, workdir)
    process.send_signal(getattr(signal, name))
    _, err = finish(process, status=code)
    step = states(workdir)["latest"][0]
    assert f"{name}: saved step {step} of 120 in {workdir}; start again to resume." in err and "Traceback" not in err
    assert [line["step"] for line in lines(workdir) if "loss" in line][-1] <= step
    finish(train(folder, workdir))
    equal(states(workdir), states(whole))
    assert lines(workdir) == lines(whole)


@pytest.mark.slow
@pytest.mark.parametrize("who, name, code", [(0, "SIGTERM", 143), (1, "SIGTERM", 143), (1, "SIGINT", 130)])
def test_two_hosts_agree_on_the_step_after_which_they_stop(who, name, code, folder):
    workdir = folder / f"stopped_{who}_{name}"
    address = f"127.0.0.1:{free_port()}"
    long = "--config.epochs=10000", "--config.eval_every_epochs=1000", "--config.checkpoint_every_steps=1000"
    processes = [train(folder, workdir, *long, f"--distributed={address},2,{i}", devices=2) for i in range(2)]
    started(processes[0], workdir)
    processes[who].send_signal(getattr(signal, name))
    results = [process.communicate(timeout=60) for process in processes]
    assert [p.returncode for p in processes] == [code if i == who else 143 for i in range(2)], results
    step = states(workdir)["latest"][0]
    assert all(f"saved step {step} of" in err for _, err in results)


def test_what_it_prints_without_a_terminal(uninterrupted):
    workdir, out, err = uninterrupted
    printed = out.splitlines()
    assert [line.split(":")[0] for line in printed[:4]] == ["digits", "mlp", "sgd", str(workdir)]
    assert [line.split()[:2] for line in printed[4:-1]] == [["epoch", str(i)] for i in range(1, 13)]
    assert printed[-1] == f"Trained. Now: python eval.py '--workdir={workdir}'"
    assert "Traceback" not in err


def test_eval_measures_the_workdirs_own_attacks_with_overrides(uninterrupted, folder):
    workdir, *_ = uninterrupted
    limits = "--config.evaluation.limit=24", "--config.evaluation.split=validation", "--config.evaluation.checks=0"
    options = "--config.attacks.flow.step_size=1/20", "--config.attacks.flow.radius=1/4"
    out, _ = finish(start("eval.py", f"--workdir={workdir}", *limits, *options, folder=folder))
    ((name, report),) = evaluations(workdir).items()
    assert name == "validation-first_24-checks_0-flow-radius_0.25-step_size_0.05"
    assert (report["split"], report["clean"]["n"], list(report["attacks"])) == ("validation", 24, ["flow"])
    flow = report["attacks"]["flow"]
    assert flow["threat"]["radius"] == 0.25 and flow["settings"]["steps"] == 2
    assert flow["settings"]["step_size"] == pytest.approx(0.05)
    assert report["checkpoint_step"] == states(workdir)["best"][0]
    assert "flow linf 0.25 px" in out


@pytest.mark.parametrize(
    "program, arguments, texts",
    [
        ("train.py", ["--config.terms.frg.weight=2"], ["no key 'frg'", "['ce', 'fgr']"]),
        ("train.py", ["--config.schedule.learning_rate=3e38", "--config.optimizer.momentum=0"],
         ["at step ", "is NaN or infinite", "schedule.learning_rate"]),
    ],
)  # fmt: skip
def test_mistakes_are_one_message_and_status_2(program, arguments, texts, folder):
    workdir = folder / "mistaken"
    out, err = finish(train(folder, workdir, *arguments), status=2)
    message = err.strip().splitlines()[-1]
    assert message.startswith(f"{program}: ") and "Traceback" not in err
    for text in texts:
        assert text in message
    if workdir.is_dir() and (workdir / "checkpoints").is_dir():
        for _, state in states(workdir).values():
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
def test_two_hosts_of_two_devices_end_where_one_host_does(folder):
    short = ["--config.epochs=1", "--config.eval_every_epochs=0.5"]
    address = f"127.0.0.1:{free_port()}"
    alone = folder / "alone"
    together = folder / "together"
    processes = [
        train(folder, together, *short, f"--distributed={address},2,{i}", devices=2) for i in range(2)
    ]  # fmt: skip
    results = [finish(process) for process in processes]
    finish(train(folder, alone, *short))
    # Gloo writes there too, lines in pieces at times.
    said = [[line for line in out.splitlines() if line.startswith(("epoch", "Trained"))] for out, _ in results]
    assert len(said[0]) == 3 and said[1] == []  # process 0 speaks for all
    one, two = states(alone)["latest"], states(together)["latest"]
    assert one[0] == two[0] == 10

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(a).max(), 1e-30))

    for part in ("params", "ema"):
        jax.tree.map(close, one[1][part], two[1][part])
    assert [line["step"] for line in lines(together)] == [line["step"] for line in lines(alone)]
    for a, b in zip(lines(alone), lines(together), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    # The checkpoint resumes, on one host as well.
    finish(train(folder, together, *short))
    assert len(lines(together)) == len(lines(alone))


def test_hosts_that_would_train_different_things_end_before_the_first_step(folder):
    workdir, address = folder / "different", f"127.0.0.1:{free_port()}"
    processes = [train(folder, workdir, f"--config.seed={i}", f"--distributed={address},2,{i}") for i in range(2)]
    results = [finish(process, status=2) for process in processes]
    for _, err in results:
        assert "the config of process 1 is not that of process 0" in err and "Traceback" not in err
    assert not workdir.exists()


@pytest.mark.slow
def test_a_workdir_that_hosts_do_not_share_is_refused(folder):
    address = f"127.0.0.1:{free_port()}"
    processes = [train(folder, folder / f"own_{i}", f"--distributed={address},2,{i}") for i in range(2)]
    for process in processes:
        _, err = finish(process, status=2)
        assert "is not the folder that processes [1] have under this name" in err and "Traceback" not in err
    assert not (folder / "own_0" / ".shared").exists()
