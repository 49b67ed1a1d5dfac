"""The original files of well-known datasets: where they are published, their checksums, and how they are read.

A dataset may be published in several forms; the first is the one that is downloaded.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from robust_jax.data import formats

Examples = tuple[np.ndarray, dict[str, np.ndarray]]
"""Images uint8 ``[N, H, W, C]``, and name -> labels ``[N]``: "label", and others that the dataset has."""


class File(NamedTuple):
    """A published file: its name, its checksum, "sha256:..." or "md5:...", and the addresses it is at."""

    name: str
    checksum: str
    urls: tuple[str, ...]


class Form(NamedTuple):
    """A form in which a dataset is published.

    Attributes:
      files: all are needed.
      read: of the files, in their order, gives split -> examples.
    """

    files: tuple[File, ...]
    read: Callable[..., dict[str, Examples]]


class Original(NamedTuple):
    """A dataset.

    Attributes:
      version: of TFDS whose order of examples is kept.
      forms: in which it is published.
      digits: of the examples' numbers in their ids; 0: they have none.
      labels: name -> number of classes of labels besides "label".
      citation: whom to cite.
    """

    version: str
    forms: tuple[Form, ...]
    digits: int
    labels: dict[str, int]
    citation: str


def _idx(urls: tuple[str, ...], *checksums: str) -> Form:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    files = [f"{name}-ubyte.gz" for name in names]
    return Form(
        tuple(
            File(file, f"sha256:{checksum}", tuple(url + file for url in urls))
            for file, checksum in zip(files, checksums, strict=True)
        ),
        formats.idx,
    )


def _archive(name: str, checksum: str, read: Callable[..., dict[str, Examples]]) -> Form:
    return Form((File(name, checksum, (f"https://www.cs.toronto.edu/~kriz/{name}",)),), read)


def _svhn(split: str, checksum: str) -> File:
    name = f"{split}_32x32.mat"
    return File(name, f"sha256:{checksum}", (f"http://ufldl.stanford.edu/housenumbers/{name}",))


_KRIZHEVSKY = "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009."

ORIGINALS = {
    "mnist": Original(
        "3.0.1",
        (
            _idx(
                (
                    "https://storage.googleapis.com/cvdf-datasets/mnist/",
                    "https://ossci-datasets.s3.amazonaws.com/mnist/",
                ),
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        ),
        0,
        {},
        "Y. LeCun, C. Cortes and C. J. C. Burges, The MNIST database of handwritten digits, 1998.",
    ),
    "fashion_mnist": Original(
        "3.0.1",
        (
            _idx(
                (
                    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
                ),
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        ),
        0,
        {},
        "H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST, arXiv:1708.07747, 2017.",
    ),
    "cifar10": Original(
        "3.0.2",
        (
            _archive(
                "cifar-10-binary.tar.gz",
                "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                formats.cifar10_binary,
            ),
            _archive("cifar-10-python.tar.gz", "md5:c58f30108f718f92721af3b95e74349a", formats.cifar10_python),
        ),
        5,
        {},
        _KRIZHEVSKY,
    ),
    "cifar100": Original(
        "3.0.2",
        (
            _archive(
                "cifar-100-binary.tar.gz",
                "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
                formats.cifar100_binary,
            ),
            _archive("cifar-100-python.tar.gz", "md5:eb9058c3a382ffc7106e4002c42a8d85", formats.cifar100_python),
        ),
        5,
        {"coarse_label": 20},
        _KRIZHEVSKY,
    ),
    "svhn_cropped": Original(
        "3.1.0",
        (
            Form(
                (
                    _svhn("train", "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
                    _svhn("test", "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
                ),
                formats.svhn,
            ),
        ),
        6,
        {},
        "Y. Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, 2011.",
    ),
}


def wanted(name: str) -> str:
    """The names of a dataset's original files, one form after the other."""
    return ", or ".join(" ".join(file.name for file in form.files) for form in ORIGINALS[name].forms)


def command(name: str, folder: str | Path) -> str:
    """The command that prepares a dataset in a folder."""
    return f"robust-jax prepare {name} --data_dir={shlex.quote(str(folder))}"
