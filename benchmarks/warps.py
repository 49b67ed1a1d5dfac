"""Ways to write `robust_jax.warp`, and its cost compared with a network: `python benchmarks/warps.py`.

gather: the library's, four gathers. fused: one gather of the four taps, placed side by side beforehand. stencil: nine
shifted images instead of a gather, for displacements below a pixel only. All give the same numbers up to rounding,
which is checked. Columns: milliseconds of a warp, of its derivatives with respect to the flow and to the images, and of
five steps of sign ascent on the flow; then the image gradient of a network that takes such images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import lax

from measurements import report
from origin import source
from robust_jax import cli, models
from robust_jax.spaces.warping import warp
from steps import built, image_shape
from timing import timed

COLUMNS = ("forward", "in the flow", "in the images", "five steps")
Warp = Callable[[jax.Array, jax.Array], jax.Array]


def fused(images: jax.Array, flow: jax.Array) -> jax.Array:
    """Right, lower and diagonal neighbours become channels."""
    b, h, w, c = images.shape
    y = jnp.clip(jnp.arange(h, dtype=flow.dtype)[:, None] + flow[..., 0], 0, h - 1)
    x = jnp.clip(jnp.arange(w, dtype=flow.dtype) + flow[..., 1], 0, w - 1)
    top, left = jnp.floor(y), jnp.floor(x)
    pair = jnp.concatenate([images, jnp.concatenate([images[:, :, 1:], images[:, :, -1:]], 2)], -1)
    four = jnp.concatenate([pair, jnp.concatenate([pair[:, 1:], pair[:, -1:]], 1)], -1)
    index = (top * w + left).astype(jnp.int32).reshape(b, h * w, 1)
    taken = jnp.take_along_axis(four.reshape(b, h * w, 4 * c), index, axis=1, mode="promise_in_bounds")
    a, right, below, diagonal = jnp.moveaxis(taken.reshape(b, h, w, 4, c), 3, 0)
    down, across = (y - top)[..., None], (x - left)[..., None]
    upper, lower = a * (1 - across) + right * across, below * (1 - across) + diagonal * across
    return upper * (1 - down) + lower * down


def stencil(images: jax.Array, flow: jax.Array) -> jax.Array:
    """Weights of the pixel and its eight neighbours."""
    h, w = images.shape[1:3]

    def weights(offset: jax.Array, position: jax.Array, size: int) -> tuple[jax.Array, "..."]:
        offset = (jnp.clip(position + offset, 0, size - 1) - position)[..., None]
        after, before = jnp.where(offset >= 0, offset, 0), jnp.where(offset < 0, -offset, 0)
        return before, 1 - before - after, after

    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = weights(flow[..., 0], jnp.arange(h, dtype=flow.dtype)[:, None], h)
    columns = weights(flow[..., 1], jnp.arange(w, dtype=flow.dtype), w)
    lines = (sum(a * padded[:, i : i + h, j : j + w] for j, a in enumerate(columns)) for i in range(3))
    return sum(a * line for a, line in zip(rows, lines, strict=True))


def uses(form: Warp, towards: jax.Array) -> list[Callable[[jax.Array, jax.Array], jax.Array]]:
    """The functions of images and flow that the columns time."""

    def score(x: jax.Array, flow: jax.Array) -> jax.Array:
        return (form(x, flow) * towards).sum()

    in_flow = jax.grad(score, argnums=1)

    def ascent(x: jax.Array, flow: jax.Array) -> jax.Array:
        return lax.fori_loop(0, 5, lambda _, f: jnp.clip(f + 0.01 * jnp.sign(in_flow(x, f)), -0.9, 0.9), flow)

    return [form, in_flow, jax.grad(score), ascent]


def milliseconds(function: Callable[..., jax.Array], *args: jax.Array, repeats: int) -> float:
    """The median of compiled calls."""
    run = partial(jax.jit(function), *args)
    return 1e3 * timed(lambda: jax.block_until_ready(run()), repeats).median


def main(options: flags.FlagValues, _: list[str]) -> None:
    """Prints one table per network."""
    origin, tables, passes = source(), {}, []
    for name in ("small_cnn", "vgg11"):
        images, towards = jax.random.uniform(jax.random.key(0), (2, options.batch, *image_shape(name)))
        flow = jnp.clip(0.155 * jax.random.normal(jax.random.key(1), (*images.shape[:3], 2)), -0.9, 0.9)
        rows = tables[f"Images {images.shape}"] = []
        for form in (warp, fused, stencil):
            np.testing.assert_allclose(form(images, flow), warp(images, flow), atol=1e-6)
            row = {f"images {images.shape}": "gather" if form is warp else form.__name__}
            for column, use in zip(COLUMNS, uses(form, towards), strict=True):
                row[f"{column}, ms"] = milliseconds(use, images, flow, repeats=options.repeats)
            rows.append(row)
        bound = models.bind(*built(name, "float32"))
        gradient = jax.grad(lambda x, bound: bound(x)[:, 0].sum())
        took = milliseconds(gradient, images, bound, repeats=options.repeats)
        passes.append({"network": name, "gradient in the images, ms": took})
    report(tables | {"The networks": passes}, options.out, origin)


if __name__ == "__main__":
    cli.run(main)
