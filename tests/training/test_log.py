"""metrics.jsonl, TensorBoard events, and the line an epoch where there is no terminal."""

from __future__ import annotations

import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from robust_jax.training.log import TrainingLog


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder):
    """All TensorBoard events of a folder, file by file: records of length, its checksum, data, its checksum."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(folder):
    return [(e.step, v.tag, round(v.simple_value, 5)) for e in events(folder) for v in e.summary.value]


def test_every_number_is_in_both_files(tmp_path, capsys):
    with TrainingLog(tmp_path, 0, 20, 10.0) as log:
        for step in range(1, 21):
            log.tick()
            if step % 10 == 0:
                log.write(step, {"loss": 1 / step, "terms/fgr": 0.25, "accuracy": 0.5})
                log.write(step, {"validation/clean": 0.75}, epoch=step / 10)
    one, validation, two, _ = lines(tmp_path)
    assert (one["step"], one["epoch"], one["loss"], one["terms/fgr"]) == (10, 1.0, 0.1, 0.25)
    assert one["steps_per_second"] > 0 and "steps_per_second" not in validation
    assert validation == {"step": 10, "epoch": 1.0, "validation/clean": 0.75} and two["step"] == 20
    expected = {(line["step"], k, round(v, 5)) for line in (one, validation, two) for k, v in line.items()
                if k not in ("step", "epoch", "steps_per_second")}  # fmt: skip
    assert expected <= set(scalars(tmp_path))
    assert {(10, "steps_per_second"), (20, "steps_per_second")} <= {s[:2] for s in scalars(tmp_path)}
    screen = capsys.readouterr()
    printed = screen.out.splitlines()
    assert len(printed) == 2 and screen.err == ""  # a line an epoch, no bar where there is no terminal
    for text in ("epoch 1 ", "step 10/20", "loss 0.1", "fgr 0.25", "val clean 0.75", "steps/s", "s left"):
        assert text in printed[0]


def test_a_resumed_run_takes_back_what_it_runs_again(tmp_path):
    with TrainingLog(tmp_path, 0, 20, 10.0) as log:
        for step in (4, 8, 12):
            log.write(step, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 16, "lo')  # killed while writing
    with TrainingLog(tmp_path, 8, 20, 10.0) as log:
        assert [line["step"] for line in lines(tmp_path)] == [4, 8]
        log.write(12, {"loss": 2.0})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(4, 1.0), (8, 1.0), (12, 2.0)]
    # TensorBoard hides steps from this one on that were written before: those after the checkpoint, not its own.
    starts = [e.step for e in events(tmp_path) if e.session_log.status == e.session_log.START]
    assert starts[-1] == 9


def test_a_run_killed_before_its_first_checkpoint_starts_its_log_anew(tmp_path):
    with TrainingLog(tmp_path, 0, 20, 10.0) as log:
        log.write(4, {"loss": 1.0})
    with TrainingLog(tmp_path, 0, 20, 10.0) as log:
        log.write(4, {"loss": 3.0})
    assert [line["loss"] for line in lines(tmp_path)] == [3.0]
    assert [e.step for e in events(tmp_path) if e.session_log.status == e.session_log.START][-1] == 1


def test_other_processes_write_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with TrainingLog(tmp_path, 0, 20, 10.0) as log:
        log.tick()
        log.write(10, {"loss": 1.0})
        log.write(10, {"validation/clean": 0.5}, epoch=1.0)
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_a_log_does_not_write_through_a_link(tmp_path):
    precious = tmp_path / "precious"
    for resumed_at in (0, 8):
        precious.write_text("precious")
        (tmp_path / "metrics.jsonl").unlink(missing_ok=True)
        (tmp_path / "metrics.jsonl").symlink_to(precious)
        with TrainingLog(tmp_path, resumed_at, 20, 10.0) as log:
            log.write(12, {"loss": 1.0})
        assert precious.read_text() == "precious"


GOOD = "".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in (4, 8))
DAMAGE = {
    "binary": (bytes(range(256)) * 4, [], True),
    "a line cut": ((GOOD + '{"step": 6, "lo\n{"step": 8}\n').encode(), [4, 8, 8], True),
    "no step": ((GOOD + '{"loss": 3.0}\n{"step": 8}\n').encode(), [4, 8, 8], True),
    "a list": (("[1]\n" + GOOD).encode(), [4, 8], True),
    "steps of text": (('{"step": "4"}\n' + GOOD).encode(), [4, 8], True),
    "nested": (("[" * 100_000 + "\n" + GOOD).encode(), [4, 8], True),
    "zeroed": (bytes(100) + b"\n" + GOOD.encode(), [4, 8], True),
    "empty": (b"", [], False),
    "the last line cut": ((GOOD + '{"step": 1').encode(), [4, 8], False),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_metrics_are_told_and_kept_beside(kind, tmp_path, caplog):
    content, steps, kept = DAMAGE[kind]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with TrainingLog(tmp_path, 8, 20, 10.0) as log:
        log.write(12, {"loss": 2.0})
    assert [line["step"] for line in lines(tmp_path)] == [*steps, 12]
    damaged = tmp_path / "metrics.jsonl.damaged"
    assert damaged.exists() == kept and (not kept or damaged.read_bytes() == content)
    assert (str(path) in caplog.text) == (kept or not steps)


def test_missing_metrics_are_told_and_a_folder_refused(tmp_path, caplog):
    with TrainingLog(tmp_path, 8, 20, 10.0):
        assert "metrics.jsonl is missing" in caplog.text
    (tmp_path / "other" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(ValueError, match="metrics.jsonl is a folder"):
        TrainingLog(tmp_path / "other", 8, 20, 10.0)
