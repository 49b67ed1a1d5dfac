"""The tables of results: what each one trains, and with which attacks it is measured.

A table has two sizes that are never mixed: `short` fits two CPU cores, `full` needs a GPU. benchmarks/reproduce.py runs
one. The tables themselves are in tables_methods.py, tables_mnist.py and tables_cifar.py.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

import tables_cifar
import tables_methods
import tables_mnist
from robust_jax.spaces.flow import flow
from robust_jax.spaces.perturbations import Perturbation
from robust_jax.spaces.warping import warp
from table_types import Table


def _zero_padded(images: Any, delta: Any) -> Any:
    """`warp` with zeros beyond the border, for flows of at most one pixel."""
    border = ((0, 0), (1, 1), (1, 1), (0, 0))
    return warp(jnp.pad(images, border), jnp.pad(delta, border))[:, 1:-1, 1:-1]


zero_padded = Perturbation(flow.zeros, _zero_padded, "zero-padded flow", unit="px", moves_pixels=True)
"""Flows as the FGR reference has them: zeros outside of the image, and attacked by the plain derivative."""


TABLES: dict[str, dict[str, Table]] = tables_methods.TABLES | tables_mnist.TABLES | tables_cifar.TABLES
