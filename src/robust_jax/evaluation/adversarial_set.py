"""The adversarial images of an evaluation in one ``.npz`` file, written without holding them in memory.

    images              [N, H, W, C], float32 in [0, 1]: the clean images, in the order of the examples
    labels, id          [N], integers
    prediction          [N], the classes predicted for the clean images; -1 if the logits are not finite
    NAME/images         [N, H, W, C], of the dtype that the attack gives, float32 as a rule: T(x, δ) in [0, 1]
    NAME/delta/0, ...   [N, ...], the leaves of δ in the order of `jax.tree.leaves`; one array unless the space is a
                        composition
    NAME/prediction     [N], the classes predicted for NAME/images
    NAME/success        [N], bool: the adversarial image is misclassified

`numpy.load` reads it, and ``data.name="npz:PATH"`` takes its clean images. ``data.from_arrays(stored["NAME/images"],
stored["labels"])`` makes a data set of adversarial images, whose intensities it rounds to bytes. An example that an
attack was not tried on keeps its image, and δ = 0.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from robust_jax.evaluation.outcomes import PerExample
from robust_jax.files import folder_name, refuse_other

FILE = "adversarial.npz"
_CHUNK = 256  # examples that are copied at a time


class AdversarialSet:
    """Gathers images and δ batch by batch in temporary files, and writes them as one.

    Use it as a context: the temporary files are removed at its end.

    Raises:
      ValueError: no name of a file, one without ``.npz``, or a folder of that name.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(folder_name("save", path))
        if self.path.suffix != ".npz":
            raise ValueError(f"save={str(self.path)!r}: give the name of an .npz file.")
        refuse_other(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(dir=self.path.parent, prefix=".", suffix=".tmp")
        self._kinds: dict[str, tuple[Path, np.dtype[Any], tuple[int, ...]]] = {}

    def __enter__(self) -> AdversarialSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Appends the next rows to arrays, which are named as in the file."""
        for name, array in rows.items():
            kind = Path(self._folder.name) / str(len(self._kinds)), array.dtype, array.shape[1:]
            path, *_ = self._kinds.setdefault(name, kind)
            with path.open("ab") as file:
                file.write(np.ascontiguousarray(array).tobytes())

    def write(self, measured: PerExample) -> None:
        """Writes the file, atomically.

        Args:
          measured: of the same examples.
        """
        for name, outcome in measured.attacks.items():
            if f"{name}/images" not in self._kinds:  # the attack saw no example
                _, dtype, shape = self._kinds["images"]
                none = jnp.zeros((0, *shape), dtype)
                rows = rows_of(name, none, outcome.attack.threat.perturbation.zeros(none))
                self.add({key: np.asarray(row) for key, row in rows.items()})
        small = {"labels": measured.label, "id": measured.id, "prediction": measured.prediction}
        for name, outcome in measured.attacks.items():
            small |= {f"{name}/prediction": outcome.prediction, f"{name}/success": outcome.prediction != measured.label}
        temporary = self.path.with_name(f".{os.getpid()}.{secrets.token_hex(4)}.tmp")
        try:
            with zipfile.ZipFile(temporary, "x", allowZip64=True) as file:
                for name, array in small.items():
                    with file.open(f"{name}.npy", "w") as member:
                        np.lib.format.write_array(member, np.ascontiguousarray(array))
                for name in self._kinds:
                    attack = measured.attacks.get(name.rpartition("/images")[0] or name.rpartition("/delta/")[0])
                    self._copy(file, name, len(measured.label), None if attack is None else attack.seen)
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def _copy(self, file: zipfile.ZipFile, name: str, count: int, seen: Bool[np.ndarray, " n"] | None) -> None:
        """Copies one array; rows that were not seen are clean images, and zeros of δ."""
        rows = self._rows(name)
        clean = self._rows("images") if name.endswith("/images") else None
        seen = np.ones(count, bool) if seen is None else seen
        header = {"descr": rows.dtype.str, "fortran_order": False, "shape": (count, *rows.shape[1:])}
        with file.open(f"{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            done = 0
            for start in range(0, count, _CHUNK):
                chosen = seen[start : start + _CHUNK]
                chunk = np.zeros((len(chosen), *rows.shape[1:]), rows.dtype)
                if clean is not None:
                    chunk[:] = clean[start : start + _CHUNK]
                chunk[chosen] = rows[done : done + chosen.sum()]
                done += int(chosen.sum())
                member.write(chunk.tobytes())

    def _rows(self, name: str) -> np.ndarray:
        path, dtype, shape = self._kinds[name]
        size = int(np.prod(shape)) * dtype.itemsize
        count = path.stat().st_size // size if size else 0
        return np.memmap(path, dtype, "r", shape=(count, *shape)) if count else np.zeros((0, *shape), dtype)


def rows_of(name: str, images: Array, delta: Any) -> dict[str, Array]:
    """Adversarial images and δ of a batch under their names in the file."""
    leaves = jax.tree.leaves(delta)
    return {f"{name}/images": images} | {f"{name}/delta/{i}": leaf for i, leaf in enumerate(leaves)}
