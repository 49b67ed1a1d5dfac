"""The charts: lines in order, with their bands, and what does not fit refused."""

import io

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.image import imread

from robust_jax.evaluation import curves

CURVE = {"radius": [0.2, 0, 0.1], "accuracy": [0.1, 0.9, 0.5], "interval": [[0.05, 0.2], [0.8, 0.95], [0.4, 0.6]]}


def test_curves_are_drawn_in_order_with_their_bands(tmp_path):
    other = CURVE | {"accuracy": [0.3, 0.8, 0.6]}
    path = tmp_path / "curve.png"
    figure = curves.accuracy_curves({"one": CURVE, "two": other}, path, xlabel="radius (px)", highlight=0.1)
    assert len(np.unique(np.round(imread(path), 2).reshape(-1, 4), axis=0)) > 50  # something is drawn
    axes = figure.axes[0]
    line = axes.get_lines()[0]
    np.testing.assert_allclose(line.get_xdata(), [0, 0.1, 0.2])
    np.testing.assert_allclose(line.get_ydata(), [0.9, 0.5, 0.1])
    bands = [c for c in axes.collections if isinstance(c, PolyCollection)]
    assert len(bands) == 2
    assert {(0.0, 0.8), (0.0, 0.95), (0.2, 0.05)} <= set(map(tuple, bands[0].get_paths()[0].vertices.round(6).tolist()))
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["one", "two"]


def test_curves_reject_what_does_not_fit():
    with pytest.raises(ValueError, match="no curve"):
        curves.accuracy_curves({}, io.BytesIO())
    with pytest.raises(ValueError, match=r"curves\['one'\] has radius \(3,\), accuracy \(2,\)"):
        curves.accuracy_curves({"one": CURVE | {"accuracy": [1, 2]}}, io.BytesIO())


def test_a_trade_off_has_a_line_an_attack_and_a_label_a_run(tmp_path):
    robust = {"flow": [0.1, 0.5, 0.6], "additive": [0.2, 0.3, 0.5]}
    figure = curves.trade_off([0.99, 0.98, 0.9], robust, ["0", "1", "3"], tmp_path / "t.png", title="weight")
    axes = figure.axes[0]
    for line, accuracy in zip(axes.get_lines(), robust.values(), strict=True):
        np.testing.assert_allclose(line.get_xydata(), list(zip([0.99, 0.98, 0.9], accuracy, strict=True)))
    assert [t.get_text() for t in axes.texts] == ["0", "1", "3"] * 2
    assert (tmp_path / "t.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="clean has 3"):
        curves.trade_off([0.99, 0.98, 0.9], {"flow": [0.1]}, ["0", "1", "3"], io.BytesIO())
