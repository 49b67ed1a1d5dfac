"""Image sources: random access to the labelled images of a split, uint8 on the host.

    dataset = load("digits", seed=0)
    for batch in train_batches(dataset.train, batch_size=64, seed=0, start_step=step): ...

There is no iterator state to save: batch s of `train_batches` depends on (seed, s) only. `to_float` and the functions
of `robust_jax.data.augment` run on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

_CACHE_BYTES = 2**30  # a split smaller than this is decoded once and kept in memory

Batch = dict[str, np.ndarray]
Decode = Callable[[np.ndarray], list[tuple[np.ndarray, int]]]


class Source:
    """Random access to the labelled images of a split, or of a part of it.

    `source[i]` is `dict(image=uint8 [H, W, C], label=int, id=int)`. The id is the example's index
    in the whole split: it stays the same in every order and every part, and per-example randomness
    is folded in from it.
    """

    def __init__(
        self,
        name: str,
        size: int,
        image_shape: tuple[int, ...],
        num_classes: int,
        decode: Decode,
        class_names: Sequence[str] | None = None,
    ):
        """Wraps a decoder; `from_arrays` wraps arrays.

        Args:
          name: How errors name the split, such as "mnist/train".
          size: The number of examples.
          image_shape: (H, W, C) of each image.
          num_classes: Labels are 0..num_classes - 1.
          decode: `decode(ids) -> [(image, label), ...]`, called when an example is first needed,
            from a thread. Its results are checked, and kept if all images take less than 1 GiB.
          class_names: One per class; None if they have none.

        Raises:
          ValueError: Another number of names than classes.
        """
        self.class_names = None if class_names is None else tuple(map(str, class_names))
        if self.class_names is not None and len(self.class_names) != num_classes:
            raise ValueError(
                f"{name}: {len(self.class_names)} class names for {num_classes} classes: give one for each."
            )
        self.name, self.image_shape, self.num_classes = name, tuple(image_shape), num_classes
        self.ids, self._decode = np.arange(size), decode
        kept = size if size * int(np.prod(image_shape)) <= _CACHE_BYTES else 0
        # np.empty takes no memory before it is written to.
        self._images = np.empty((kept, *image_shape), np.uint8)
        self._labels, self._known = np.empty(kept, np.int32), np.zeros(kept, bool)
        self._given = False

    @classmethod
    def from_arrays(
        cls,
        images: UInt8[np.ndarray, "n h w c"],
        labels: Int[np.ndarray, " n"],
        num_classes: int,
        name: str = "train",
        class_names: Sequence[str] | None = None,
    ) -> Source:
        """Wraps arrays, and copies them.

        Args:
          images: In 0..255, with 1 or 3 channels.
          labels: In 0..num_classes - 1.
          num_classes: The number of classes.
          name: How errors name the split.
          class_names: One per class; None if they have none.

        Raises:
          ValueError: Empty arrays, a wrong type or shape, or a label out of range; names the record.

        Example::

            images = np.zeros((10, 28, 28, 1), np.uint8)
            labels = np.arange(10) % 2
            source = Source.from_arrays(images, labels, num_classes=2, name="mine/train")
            source[3]   # {"image": uint8 [28, 28, 1], "label": 1, "id": 3}
        """
        shape = np.shape(images)
        if images.dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or not shape[0]:
            raise ValueError(
                f"{name}: images must be uint8 [N, H, W, C] with N > 0 and C = 1 or 3, not "
                f"{images.dtype} {list(shape)}."
            )
        if np.shape(labels) != shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{name}: labels must be integers [{shape[0]}], not {labels!r}.")

        wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
        if len(wrong):
            raise _out_of_range(name, wrong[0], labels[wrong[0]], num_classes)

        def decode(ids: np.ndarray) -> list[tuple[np.ndarray, int]]:
            return [(images[i], int(labels[i])) for i in ids]

        source = cls(name, shape[0], shape[1:], num_classes, decode, class_names)
        # All are known to be right, and need not be decoded.
        source._images, source._labels = np.array(images), np.asarray(labels, np.int32)
        source._known, source._given = np.ones(shape[0], bool), True
        return source

    @property
    def labels(self) -> Int[np.ndarray, " n"] | None:
        """The labels of all examples, if they were given as an array; None if an example has to be decoded for them."""
        return self._labels[self.ids] if self._given else None

    def __repr__(self) -> str:
        images = f"{len(self.ids):,} images of {'×'.join(map(str, self.image_shape))}"
        return f"Source({self.name!r}, {images}, {self.num_classes} classes)"

    def subset(self, positions: Int[np.ndarray, " m"]) -> Source:
        """The examples at `positions`, a source that keeps their ids and shares this one's memory."""
        part = object.__new__(Source)
        part.__dict__.update(self.__dict__)
        part.ids = self.ids[positions]
        return part

    def take(self, positions: Int[np.ndarray, " b"]) -> Batch:
        """The examples at `positions`: image uint8 [b, H, W, C], label int32 [b], id int32 [b].

        Raises:
          ValueError: A record that is corrupt, has another shape, or a label out of range.
        """
        ids = self.ids[positions]
        if len(self._known):
            new = np.unique(ids[~self._known[ids]])
            if len(new):
                # Two threads that decode the same record write the same bytes.
                self._images[new], self._labels[new] = self._checked(new)
                self._known[new] = True
            images, labels = self._images.take(ids, axis=0), self._labels[ids]  # several times faster than [ids]
        else:
            images, labels = self._checked(ids)
        return {"image": images, "label": labels, "id": ids.astype(np.int32)}

    def _checked(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        records = self._decode(ids)
        for i, (image, label) in zip(ids, records, strict=True):
            if image.shape != self.image_shape or image.dtype != np.uint8:
                raise ValueError(
                    f"{self.name}[{i}] is a {image.dtype} image of shape {list(image.shape)}, "
                    f"expected uint8 {list(self.image_shape)} (height, width, channels)."
                )
            if not 0 <= label < self.num_classes:
                raise _out_of_range(self.name, i, label, self.num_classes)
        images, labels = zip(*records, strict=True)
        return np.stack(images), np.asarray(labels, np.int32)

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """One example."""
        one = {k: v[0] for k, v in self.take(np.asarray([i])).items()}
        return one | {"label": int(one["label"]), "id": int(one["id"])}


def _out_of_range(name: str, example: int, label: int, num_classes: int) -> ValueError:
    return ValueError(f"{name}[{example}] has label {label}, expected 0..{num_classes - 1}.")
