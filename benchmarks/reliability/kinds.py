"""What can be wrong with a workdir: kinds of damage, each a function that does it, and the file that it concerns."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# Of the good workdir: the latest checkpoints, and the best one on validation.
OLDER, NEWER, BEST, LAST = 35, 36, 20, 40


class Kind(NamedTuple):
    """A kind of damage.

    Attributes:
      name: in words.
      do: damages a workdir, its argument.
      file: what a message must name.
      programs: which of train.py and eval.py meet it.
    """

    name: str
    do: Callable[[Path], Any]
    file: str
    programs: tuple[str, ...] = ("train.py", "eval.py")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 4)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def to_folder(path: Path) -> None:
    remove(path)
    path.mkdir()


def to_pipe(path: Path) -> None:
    """Puts a pipe in its place, which nobody writes to."""
    remove(path)
    os.mkfifo(path)


def to_file(path: Path) -> None:
    remove(path)
    path.write_text("a file")


def _every(change: Callable[[Path], None]) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        for path in [p for p in folder.rglob("*") if p.is_file()]:
            change(path)

    return do


def _numbers(folder: Path) -> Path:
    """The file that holds most numbers of a checkpoint."""
    return max((folder / "default" / "d").iterdir(), key=lambda path: path.stat().st_size)


def _content(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Changes what a JSON file holds."""

    def do(path: Path) -> None:
        content = json.loads(path.read_text())
        changed = change(content)
        path.write_text(json.dumps(content if changed is None else changed))

    return do


def _linked(path: Path) -> None:
    outside = path.parent.parent / f"{path.parent.name}_outside_{path.name}"
    shutil.move(path, outside)
    path.symlink_to(outside)


def _moved_in(other: Path) -> Callable[[Path], None]:
    """The newest checkpoint comes from another run."""

    def do(workdir: Path) -> None:
        target = workdir / "checkpoints" / "latest" / str(NEWER)
        shutil.rmtree(target)
        shutil.copytree(other / "checkpoints" / "latest" / str(NEWER), target)

    return do


def _of_newest() -> list[Kind]:
    """Damage to the newest checkpoint."""
    changes: dict[str, Callable[[Path], Any]] = {
        "all files cut": _every(cut),
        "all files zeroed": _every(zero),
        "all files empty": _every(empty),
        "its numbers cut": lambda f: cut(_numbers(f)),
        "its numbers zeroed": lambda f: zero(_numbers(f)),
        "its numbers empty": lambda f: empty(_numbers(f)),
        "its numbers missing": lambda f: remove(_numbers(f)),
        "its numbers a pipe": lambda f: to_pipe(_numbers(f)),
        "its manifest cut": lambda f: cut(f / "default" / "manifest.ocdbt"),
        "its manifest missing": lambda f: remove(f / "default" / "manifest.ocdbt"),
        "its tree cut": lambda f: cut(f / "default" / "_METADATA"),
        "its tree missing": lambda f: remove(f / "default" / "_METADATA"),
        "its tree claims absurd shapes": lambda f: (f / "default" / "_METADATA").write_text(
            (f / "default" / "_METADATA").read_text().replace("[16", "[1600000000000")
        ),
        "its metadata missing": lambda f: remove(f / "_CHECKPOINT_METADATA"),
        "its metadata cut": lambda f: cut(f / "_CHECKPOINT_METADATA"),
        "its metadata binary": lambda f: binary(f / "_CHECKPOINT_METADATA"),
        "its metadata a list": lambda f: (f / "_CHECKPOINT_METADATA").write_text("[]"),
        "its metadata nested deep": lambda f: (f / "_CHECKPOINT_METADATA").write_text("[" * 100_000),
        "its state missing": lambda f: remove(f / "default"),
        "its folder empty": to_folder,
        "a file in its place": to_file,
        "the one before in its place": lambda f: (remove(f), shutil.copytree(f.with_name(str(OLDER)), f)),
    }

    def of(change: Callable[[Path], Any]) -> Callable[[Path], Any]:
        return lambda workdir: change(workdir / "checkpoints" / "latest" / str(NEWER))

    return [Kind(f"newest checkpoint: {name}", of(change), f"latest/{NEWER}") for name, change in changes.items()]


def _of_several(other_seed: Path, other_config: Path) -> list[Kind]:
    """Damage to several checkpoints, or to the folders that hold them."""

    def latest(workdir: Path) -> Path:
        return workdir / "checkpoints" / "latest"

    both: dict[str, Callable[[Path], Any]] = {"cut": _every(cut), "empty": to_folder}
    kinds = [
        Kind(f"both latest checkpoints {n}", lambda w, c=c: [c(latest(w) / str(s)) for s in (OLDER, NEWER)], "latest/")
        for n, c in both.items()
    ]
    return kinds + [
        Kind("all checkpoints cut", lambda w: _every(cut)(w / "checkpoints"), "checkpoints"),
        Kind("an empty latest/999", lambda w: (latest(w) / "999").mkdir(), "latest/999"),
        Kind("a file latest/999", lambda w: (latest(w) / "999").write_text("x"), "latest/999"),
        Kind("latest missing", lambda w: remove(latest(w)), "latest"),
        Kind("latest empty", lambda w: to_folder(latest(w)), "latest"),
        Kind("latest a file", lambda w: to_file(latest(w)), "latest"),
        Kind("best a file", lambda w: to_file(w / "checkpoints" / "best"), "best"),
        Kind("best cut", lambda w: _every(cut)(w / "checkpoints" / "best"), f"best/{BEST}"),
        Kind("best missing", lambda w: remove(w / "checkpoints" / "best"), "best"),
        Kind("checkpoints a file", lambda w: to_file(w / "checkpoints"), "checkpoints"),
        Kind("checkpoints a link", lambda w: _linked(w / "checkpoints"), "checkpoints", ("train.py",)),
        Kind("another seed's checkpoint", _moved_in(other_seed), f"latest/{NEWER}"),
        Kind("another config's checkpoint", _moved_in(other_config), f"latest/{NEWER}"),
        Kind("odd names among the checkpoints", _odd_names, ""),
        Kind("a half-written checkpoint", _half_written, ""),
    ]


def _odd_names(workdir: Path) -> None:
    for name in ("notes", "36 (copy)", "-3", "３６", "1e3", "0036x", ".DS_Store"):
        (workdir / "checkpoints" / "latest" / name).mkdir()
    (workdir / "checkpoints" / "latest" / "readme.txt").write_text("mine")


def _half_written(workdir: Path) -> None:
    half = workdir / "checkpoints" / "latest" / f"{LAST}.orbax-checkpoint-tmp" / "default"
    half.mkdir(parents=True)
    (half / "manifest.ocdbt").write_bytes(b"half")


def _of_config() -> list[Kind]:
    """Damage to config.json."""
    deep: Any = "[" * 200 + "]" * 200
    changes: dict[str, Callable[[Path], Any]] = {
        "empty": empty,
        "cut": cut,
        "binary": binary,
        "a list": lambda p: p.write_text("[1, 2]"),
        "a number": lambda p: p.write_text("3"),
        "nested deep": lambda p: p.write_text(deep),
        "20 MiB": lambda p: p.write_text('{"a": "' + "x" * 20 * 2**20 + '"}'),
        "missing": remove,
        "a folder": to_folder,
        "a pipe": to_pipe,
        "lacks newer keys": _content(lambda c: {k: v for k, v in c.items() if k != "keep_checkpoints"}),
        "has later keys": _content(lambda c: c.update(key_of_a_later_version=1)),
        "lacks its model": _content(lambda c: {k: v for k, v in c.items() if k != "model"}),
        "a group is text": _content(lambda c: c.update(optimizer="adam")),
        "another seed": _content(lambda c: c.update(seed=7)),
        "a number is text": _content(lambda c: c.update(batch_size="many")),
    }

    def of(change: Callable[[Path], Any]) -> Callable[[Path], Any]:
        return lambda workdir: change(workdir / "config.json")

    kinds = [Kind(f"config.json {name}", of(change), "config.json") for name, change in changes.items()]
    return [*kinds, Kind("config.json a link", of(_linked), "config.json", ("train.py",))]


def _of_metrics() -> list[Kind]:
    """Damage to metrics.jsonl, which train.py alone reads."""

    def without_step(path: Path) -> None:
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], '{"loss": 1.0}', *lines[1:]]) + "\n")

    changes: dict[str, Callable[[Path], Any]] = {
        "binary": binary,
        "cut": lambda p: p.write_bytes(p.read_bytes()[:-10]),
        "a line without a step": without_step,
        "a list in a line": lambda p: p.write_text("[1]\n" + p.read_text()),
        "empty": empty,
        "missing": remove,
        "a folder": to_folder,
        "a pipe": to_pipe,
        "a link": _linked,
    }

    def of(change: Callable[[Path], Any]) -> Callable[[Path], Any]:
        return lambda workdir: change(workdir / "metrics.jsonl")

    return [Kind(f"metrics.jsonl {n}", of(change), "metrics.jsonl", ("train.py",)) for n, change in changes.items()]


def _of_outcomes() -> list[Kind]:
    """Damage to the outcomes of an evaluation that was interrupted, which eval.py alone reads."""

    def planted(path: Path) -> None:
        path.write_bytes(b"\x80\x04K\x01.")  # a pickle

    changes: dict[str, Callable[[Path], Any]] = {
        "cut": cut,
        "empty": empty,
        "binary": binary,
        "a pickle": planted,
        "rows missing": _fewer_rows,
        "results planted": _all_robust,
        "a folder": to_folder,
        "a pipe": to_pipe,
    }

    def of(change: Callable[[Path], Any]) -> Callable[[Path], Any]:
        return lambda w: [change(path) for path in (w / "evaluation_unfinished").iterdir()]

    folder = "evaluation_unfinished"
    kinds = [Kind(f"{folder}: {n}", of(change), folder, ("eval.py",)) for n, change in changes.items()]
    return [
        *kinds,
        Kind(f"{folder} a file", lambda w: to_file(w / folder), folder, ("eval.py",)),
        Kind(f"{folder} a link", lambda w: _linked(w / folder), folder, ("eval.py",)),
    ]


def _rewritten(path: Path, change: Callable[[str, Any], Any]) -> None:
    import numpy as np

    with np.load(path) as file:
        arrays = {name: change(name, file[name]) for name in file}
    with path.open("wb") as out:
        np.savez(out, **arrays)  # type: ignore[arg-type]


def _fewer_rows(path: Path) -> None:
    _rewritten(path, lambda name, array: array[:-1] if array.ndim and name != "checksum" else array)


def _all_robust(path: Path) -> None:
    _rewritten(path, lambda name, array: array & False if name == "broken" else array)


def _of_the_folder() -> list[Kind]:
    """Locks, results and temporary files that are in the way."""

    def folder(name: str) -> Callable[[Path], Any]:
        return lambda workdir: (workdir / "evaluations" / "test" / name).mkdir(parents=True)

    return [
        Kind("a lock left behind", lambda w: (w / ".lock").write_text("123"), ""),
        Kind("the lock a folder", lambda w: ((w / ".lock").unlink(missing_ok=True), (w / ".lock").mkdir()), ".lock"),
        Kind("evaluation.json a folder", folder("evaluation.json"), "evaluation.json", ("eval.py",)),
        Kind("per_example.npz a folder", folder("per_example.npz"), "per_example.npz", ("eval.py",)),
        Kind("the workdir missing", remove, "", ("eval.py",)),
        Kind("the workdir a file", to_file, ""),
        Kind("the config of an old temporary file", lambda w: (w / ".config.json.1.ab.tmp").write_text("{"), ""),
    ]


def all_kinds(other_seed: Path, other_config: Path) -> list[Kind]:
    """Every kind; the arguments are workdirs of another seed and of another config, from which checkpoints come."""
    groups = (
        _of_newest(), _of_several(other_seed, other_config), _of_config(), _of_metrics(), _of_outcomes(),
        _of_the_folder(),
    )  # fmt: skip
    return [kind for group in groups for kind in group]
