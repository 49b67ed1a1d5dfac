"""Files of a workdir: written whole and through no link, read without trust."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest

from robust_jax import files

ARRAYS = {
    "a": np.arange(12.0).reshape(3, 4),
    "b/0": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "none": np.zeros((0, 3), bool),
    "one": np.float32(2),
}


class Planted:
    """What runs code when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def npz(**arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def test_writing_replaces_a_link_and_leaves_what_it_leads_to(tmp_path):
    precious, link = tmp_path / "precious", tmp_path / "evaluation.json"
    precious.write_text("precious")
    link.symlink_to(precious)
    files.write_atomically(link, b"new")
    assert (precious.read_text(), link.read_text(), link.is_symlink()) == ("precious", "new", False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evaluation.json", "precious"]


def test_a_temporary_file_is_new_and_is_removed_if_writing_fails(tmp_path, monkeypatch):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "0")
    (tmp_path / f".x.{os.getpid()}.0.tmp").symlink_to(precious)  # planted under the name that would be used
    with pytest.raises(FileExistsError):
        files.write_atomically(tmp_path / "x", b"new")
    assert precious.read_text() == "precious"

    def failing(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "1")
    monkeypatch.setattr(files.Path, "replace", failing)
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(tmp_path / "y", b"new")
    assert not list(tmp_path.glob(".y*"))


def test_appending_through_a_link_is_refused(tmp_path):
    precious, link = tmp_path / "precious", tmp_path / "metrics.jsonl"
    precious.write_text("precious")
    link.symlink_to(precious)
    with pytest.raises(ValueError, match=r"metrics.jsonl is a symbolic link to .*precious.*Remove it"):
        files.open_to_append(link)
    assert precious.read_text() == "precious"
    for _ in range(2):
        with files.open_to_append(tmp_path / "new.jsonl") as file:
            file.write("line\n")
    assert (tmp_path / "new.jsonl").read_text() == "line\n" * 2


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b'{"a": 1', "is no JSON"),
        (b"\xff\xfe\x00\x01garbage", "is no JSON"),
        (b"[" * 100_000, "nested too deep: at most 50"),
        (b"[" * 60 + b"]" * 60, "nested too deep: at most 50"),
        (b'{"a":' * 60 + b"1" + b"}" * 60, "nested too deep: at most 50"),
        (b"1" * 10_000, "is no JSON"),
        (b" " * (2**24 + 1), "16,777,217 bytes: at most 16,777,216"),
    ],
)
def test_json_that_cannot_be_read_is_one_message(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        files.read_json(tmp_path / "x.json")
    assert str(error.value).startswith(str(tmp_path / "x.json"))


def test_json(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"a": [1, {"b": [[[]]]}]}))
    assert files.read_json(tmp_path / "x.json") == {"a": [1, {"b": [[[]]]}]}


def test_arrays_are_those_written(tmp_path):
    (tmp_path / "x.npz").write_bytes(npz(**ARRAYS))
    found = files.read_arrays(tmp_path / "x.npz")
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def header(shape):
    """An array file that claims a shape and holds 8 bytes."""
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": shape})
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("a.npy", member.getvalue() + bytes(8))
    return content.getvalue()


def compressed():
    content = io.BytesIO()
    np.savez_compressed(content, a=np.zeros(10**6))
    return content.getvalue()


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a zip"),
        (b"garbage", "not a zip"),
        (npz(**ARRAYS)[:-30], "not a zip"),
        (header((10**9, 10**9)), r"a.npy claims the shape \(1000000000, 1000000000\) of float64"),
        (header((2,)), r"a.npy claims the shape \(2,\) of float64, 16 bytes, and has 8"),
        (header((-1, -1)), "claims the shape"),
        (compressed(), "it claims to hold more than its size"),
    ],
)
def test_arrays_that_cannot_be_read_are_one_message(tmp_path, content, message):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        files.read_arrays(tmp_path / "x.npz")
    assert str(error.value).startswith(str(tmp_path / "x.npz"))


def test_a_planted_pickle_is_told_by_name_and_does_not_run(tmp_path):
    planted, marker = Planted(tmp_path / "marker"), tmp_path / "marker"
    for content in (pickle.dumps(planted), npz(a=np.array([planted], object))):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(ValueError, match="x.npz: .*pickle.*could run code"):
            files.read_arrays(tmp_path / "x.npz")
    assert not marker.exists()
    pickle.loads(pickle.dumps(planted))
    assert marker.exists()  # it would have


def test_no_damage_of_an_array_file_passes_or_is_another_error(tmp_path):
    content, random, path = npz(**ARRAYS), np.random.default_rng(0), tmp_path / "x.npz"
    for place in random.integers(0, len(content), 300):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            found = files.read_arrays(path)
        except ValueError as error:
            assert str(error).startswith(str(path))
            continue
        # A bit that means nothing, such as of a date, or of an array's name in the directory.
        assert [found[k].tolist() for k in found] == [ARRAYS[k].tolist() for k in ARRAYS]


def test_control_characters_are_spelled_out():
    assert files.printable("a\x1b[31m\u202eb\n‖δ‖\x07") == "a\\x1b[31m\\u202eb\n‖δ‖\\x07"
    assert files.file_name("a/b: c") == "a_b_c"


@pytest.mark.parametrize("make, what", [(os.mkdir, "folder"), (os.mkfifo, "pipe or device")])
def test_what_is_no_file_is_told_and_not_waited_for(make, what, tmp_path):
    make(tmp_path / "a")
    for call in (files.read_json, files.read_arrays, files.open_to_append, lambda p: files.write_atomically(p, b"x")):
        with pytest.raises(ValueError, match=f"a is a {what}, where a file has to be"):
            call(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
