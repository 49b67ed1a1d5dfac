"""docs/attacks.md: its table is that of the code, its Python runs."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import attacks
from test_readme import ROOT, run_python

pytestmark = pytest.mark.usefixtures("quick_compile")
PAGE = "docs/attacks.md"


def test_the_table_of_attacks_is_that_of_the_code():
    section = (ROOT / PAGE).read_text().split("\n## All attacks\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", section, re.MULTILINE))
    universal = {name: getattr(attacks, name) for name in attacks.__all__ if name.startswith("universal")}
    assert len(universal) == 3
    functions = attacks.ATTACKS | universal
    assert list(rows) == sorted(functions)
    for name, function in functions.items():
        *_, defaults, cost, gradients, targeted = (cell.strip() for cell in rows[name].split("|"))
        parameters = inspect.signature(function).parameters
        shown = {n: getattr(p.default, "__name__", repr(p.default).replace("'", '"')) for n, p in parameters.items()}
        for option, value in re.findall(r"`(\w+)=(.*?)`", defaults):
            assert shown[option] == value, (name, option)
        assert (targeted == "yes") == ("targeted" in parameters), name
        assert (gradients == "no") == cost.removeprefix("≤ ").startswith("0 /"), name


@pytest.mark.slow
def test_the_python_of_the_page_runs():
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(64, 10)), jnp.float32)
    images = jax.random.uniform(jax.random.key(0), (8, 8, 8, 1))

    def logits_fn(x):
        return x.reshape(len(x), -1) @ weights

    def predict(x):
        return np.asarray(x).reshape(len(x), -1) @ np.asarray(weights)

    labels = logits_fn(images).argmax(-1)
    namespace = {"logits_fn": logits_fn, "predict": predict, "images": images, "labels": labels}
    assert run_python(PAGE, namespace) == 4
    assert np.isfinite(namespace["distance"]).all() and (namespace["distance"] > 0).all()
    assert namespace["result"].success.any() and namespace["fooled"].shape == (4,)
