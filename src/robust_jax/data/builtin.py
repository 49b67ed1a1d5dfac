"""The built-in datasets: every public function of this file is one, found by its name.

A dataset is a function ``() -> (train, test)`` of two `Source`s, or ``(data_dir) -> (train, test)`` if it reads files.
One of your own may lie in any module: ``data.name="my_file:my_dataset"``.
"""

from __future__ import annotations

import numpy as np

from robust_jax.data.sources import Source

_TEST_SEED = 0  # fixed, so that everybody holds out the same fifth


def digits() -> tuple[Source, Source]:
    """The handwritten digits bundled with scikit-learn, 8x8x1: 1,437 to train, 360 to test; nothing to download.

    Intensities v = 0..16 become round(255 v / 16); a fixed stratified fifth is the test split.

    E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    source = Source.from_arrays(images, bunch.target, 10, "digits", tuple("0123456789"))
    train, test = train_test_split(
        np.arange(len(images)), test_size=0.2, stratify=bunch.target, random_state=_TEST_SEED
    )
    return source.subset(np.sort(train)), source.subset(np.sort(test))
