"""Steps of the optimisers by hand, as torch.optim states them, and the learning rate at given epochs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robust_jax.config.optimizers import decayed, known_optimizers, make_optimizer, make_schedule

SCHEDULE = dict(learning_rate=0.1, boundaries=(), factor=0.1, warmup_epochs=0.0, epochs=80.0, steps_per_epoch=10.5)
OPTIMIZER = dict(name="sgd", momentum=0.9, nesterov=False, weight_decay=0.0, decay_batch_norm=True, clip_norm=0.0)


def rate(epoch, **changes):
    settings = SCHEDULE | changes
    return float(make_schedule(**settings)(round(epoch * settings["steps_per_epoch"])))


def test_piecewise_falls_at_40_and_60_of_80():
    for epoch, expected in ((0, 0.1), (39.9, 0.1), (40, 0.01), (59.9, 0.01), (60, 0.001), (79.9, 0.001)):
        at = rate(epoch, name="piecewise", boundaries=(40, 60))
        assert at == pytest.approx(expected, rel=1e-5), epoch
    assert rate(50, name="piecewise", boundaries=(40,), factor=0.5) == pytest.approx(0.05)
    assert rate(50, name="piecewise", boundaries=(40, 40.01)) == pytest.approx(0.001)  # both on one step
    # The rate falls exactly with the first step of epoch 40, step 420.
    schedule = make_schedule(**SCHEDULE | dict(name="piecewise", boundaries=(40,)))
    assert float(schedule(419)) > 5 * float(schedule(420))


def test_cosine_and_constant():
    for epoch in (0, 20, 40, 60, 80):
        assert rate(epoch, name="cosine") == pytest.approx(0.05 * (1 + np.cos(np.pi * epoch / 80)), abs=1e-6)
        assert rate(epoch, name="constant") == pytest.approx(0.1)


def test_one_cycle_peaks_after_three_tenths():
    rates = [rate(e, name="one_cycle") for e in np.linspace(0, 80, 161)]
    assert max(rates) == pytest.approx(0.1, rel=1e-3) and np.argmax(rates) == 48  # epoch 24 of 80
    assert rates[0] == pytest.approx(0.1 / 25, rel=1e-3) and rates[-1] < 1e-4
    assert all(np.diff(rates[:49]) > 0) and all(np.diff(rates[48:]) < 0)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_one_cycle_of_very_few_steps_is_finite(steps):
    schedule = make_schedule(**SCHEDULE | dict(name="one_cycle", epochs=steps, steps_per_epoch=1))
    assert all(0 <= float(schedule(s)) <= 0.1001 for s in range(steps + 1))


@pytest.mark.parametrize("name", ["constant", "piecewise", "cosine"])
def test_warmup_rises_linearly_and_epochs_count_from_the_start(name):
    at = lambda epoch: rate(epoch, name=name, warmup_epochs=4.0, boundaries=(40, 60))  # noqa: E731
    assert at(0) == 0
    assert at(2) == pytest.approx(0.05, rel=1e-5) and at(4) == pytest.approx(0.1, rel=1e-5)
    if name == "piecewise":  # boundaries are epochs of the run, not of what follows the warm-up
        assert [at(39.9), at(40), at(59.9), at(60)] == pytest.approx([0.1, 0.01, 0.01, 0.001], rel=1e-5)
    if name == "cosine":
        assert at(42) == pytest.approx(0.05, rel=1e-5) and at(80) == pytest.approx(0, abs=1e-6)


def test_unknown_names_and_impossible_combinations():
    with pytest.raises(ValueError, match="'step'.*'constant', 'cosine', 'one_cycle', 'piecewise'"):
        make_schedule(**SCHEDULE | dict(name="step"))
    with pytest.raises(ValueError, match="one_cycle has a warm-up of its own"):
        make_schedule(**SCHEDULE | dict(name="one_cycle", warmup_epochs=1.0))
    with pytest.raises(ValueError, match="'loin' is unknown.*'adam'.*'sgd'.*Did you mean 'lion'"):
        make_optimizer(optax.constant_schedule(0.1), **OPTIMIZER | dict(name="loin"))


PARAMS = {
    "Conv_0": {"kernel": jnp.array([3.0, -4.0]), "bias": jnp.array([1.0])},
    "BatchNorm_0": {"scale": jnp.array([2.0]), "bias": jnp.array([-1.0])},
    "Block": {
        "BatchNorm_1": {"scale": jnp.array([5.0]), "bias": jnp.array([6.0])},
        "Dense_0": {"kernel": jnp.array([7.0])},
    },
}  # fmt: skip


def run(gradients, params=PARAMS, rate=0.1, **changes):
    optimizer = make_optimizer(optax.constant_schedule(rate), **OPTIMIZER | changes)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def scaled(factor):
    return {k: {n: scaled_leaf(v, factor) for n, v in group.items()} for k, group in PARAMS.items()}


def scaled_leaf(value, factor):
    return {k: factor * v for k, v in value.items()} if isinstance(value, dict) else factor * value


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_coupled_weight_decay_is_torchs(nesterov):
    # torch.optim.SGD: g <- g + wd θ; v <- μ v + g; θ <- θ - lr (g + μ v if nesterov else v).
    gradients, theta, velocity = [0.5, -0.2, 0.3], 3.0, 0.0
    for g in gradients:
        g = g * 3.0 + 0.05 * theta
        velocity = 0.9 * velocity + g
        theta -= 0.1 * (g + 0.9 * velocity if nesterov else velocity)
    after = run([scaled(g) for g in gradients], weight_decay=0.05, nesterov=nesterov)
    np.testing.assert_allclose(after["Conv_0"]["kernel"][0], theta, rtol=1e-6)


def test_weight_decay_spares_batch_norm_where_so_configured():
    zero = scaled(0.0)
    everything = run([zero], weight_decay=0.5)
    np.testing.assert_allclose(everything["BatchNorm_0"]["scale"], 2.0 * 0.95)
    spared = run([zero], weight_decay=0.5, decay_batch_norm=False)
    for group in (spared["BatchNorm_0"], spared["Block"]["BatchNorm_1"]):
        source = PARAMS["BatchNorm_0"] if group is spared["BatchNorm_0"] else PARAMS["Block"]["BatchNorm_1"]
        assert group == source
    np.testing.assert_allclose(spared["Conv_0"]["kernel"], [3 * 0.95, -4 * 0.95])
    np.testing.assert_allclose(spared["Conv_0"]["bias"], 0.95)
    np.testing.assert_allclose(spared["Block"]["Dense_0"]["kernel"], 7 * 0.95)
    assert decayed(PARAMS)["Block"] == {"BatchNorm_1": {"scale": False, "bias": False}, "Dense_0": {"kernel": True}}
    scaled_block = {"scale": 1.0, "Dense_0": {"kernel": 2.0, "bias": 3.0}}  # a scale beside layers is no norm's
    assert decayed(scaled_block) == {"scale": True, "Dense_0": {"kernel": True, "bias": True}}


def test_clip_norm_clips_the_global_norm_before_momentum_and_decay():
    gradient = scaled(10.0)
    length = float(optax.tree.norm(gradient))
    after = run([gradient, gradient], clip_norm=1.0, weight_decay=0.05)
    theta, velocity = 3.0, 0.0
    for _ in range(2):
        velocity = 0.9 * velocity + 30.0 / length + 0.05 * theta
        theta -= 0.1 * velocity
    np.testing.assert_allclose(after["Conv_0"]["kernel"][0], theta, rtol=1e-6)
    small = scaled(1e-3)
    np.testing.assert_array_equal(run([small], clip_norm=1.0)["Conv_0"]["kernel"], run([small])["Conv_0"]["kernel"])


def test_adam_couples_weight_decay_and_adamw_does_not():
    # Adam's first step is lr sign(g), whatever g's size; AdamW adds lr wd θ to it.
    for name, moved in (("adam", 0.1), ("adamw", 0.1 + 0.1 * 0.5 * 3.0)):
        after = run([scaled(1.0)], name=name, weight_decay=0.5)
        np.testing.assert_allclose(after["Conv_0"]["kernel"][0], 3.0 - moved, rtol=1e-5)
    # Coupled: with a zero gradient the decay alone makes a whole step.
    np.testing.assert_allclose(run([scaled(0.0)], name="adam", weight_decay=0.5)["Conv_0"]["kernel"][0], 2.9, rtol=1e-5)


def test_the_schedule_sets_the_step():
    schedule = make_schedule(**SCHEDULE | dict(name="piecewise", boundaries=(1,), steps_per_epoch=1))
    optimizer = make_optimizer(schedule, **OPTIMIZER | dict(momentum=0.0))
    params, state, moved = {"w": jnp.float32(0)}, None, []
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update({"w": jnp.float32(1)}, state, params)
        moved.append(float(updates["w"]))
    np.testing.assert_allclose(moved, [-0.1, -0.01, -0.01], rtol=1e-5)


KERNELS = {
    "Conv_0": {"kernel": jnp.ones((3, 3, 2, 4)) * jnp.array([0.01, 0.1, 1.0, 10.0]), "bias": jnp.full(4, 9.0)},
    "BatchNorm_0": {"scale": jnp.full(4, 9.0), "bias": jnp.full(4, 9.0)},
    "Dense_0": {"kernel": jnp.array([[3.0, 0.3, 0.0], [4.0, 0.4, 0.0]]), "bias": jnp.full(3, 9.0)},
}


def unit_norms(kernel):
    return np.sqrt((np.asarray(kernel, np.float64) ** 2).sum(tuple(range(kernel.ndim - 1))))


def test_max_norm_projects_units_and_leaves_the_others_alone():
    zero = jax.tree.map(jnp.zeros_like, KERNELS)
    after = run([zero], params=KERNELS, max_norm=2.0)
    conv, dense = after["Conv_0"]["kernel"], after["Dense_0"]["kernel"]
    np.testing.assert_allclose(unit_norms(conv), np.minimum(unit_norms(KERNELS["Conv_0"]["kernel"]), 2.0), rtol=1e-6)
    np.testing.assert_allclose(dense, [[1.2, 0.3, 0.0], [1.6, 0.4, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(conv[..., :2], KERNELS["Conv_0"]["kernel"][..., :2])
    for group, name in (("Conv_0", "bias"), ("BatchNorm_0", "scale"), ("BatchNorm_0", "bias"), ("Dense_0", "bias")):
        np.testing.assert_array_equal(after[group][name], KERNELS[group][name])


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_max_norm_holds_after_every_step(name):
    rng = np.random.default_rng(0)
    gradients = [jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), KERNELS) for _ in range(5)]
    settings = dict(params=KERNELS, name=name, rate=0.5, weight_decay=1e-3)
    for steps in range(1, 6):
        bounded = run(gradients[:steps], max_norm=1.0, **settings)
        norms = np.concatenate([unit_norms(bounded[group]["kernel"]) for group in ("Conv_0", "Dense_0")])
        assert norms.max() <= 1 + 1e-6 and (norms > 0.99).any()
    free, loose = run(gradients, **settings), run(gradients, max_norm=1e3, **settings)
    for a, b in zip(jax.tree.leaves(free), jax.tree.leaves(loose), strict=True):
        np.testing.assert_array_equal(a, b)  # far from the bound it changes nothing


def test_max_norm_of_one_step_is_the_projection_of_the_free_step():
    gradient = jax.tree.map(lambda p: jnp.cos(7 * p) + 0.5, KERNELS)
    free, bounded = run([gradient], params=KERNELS), run([gradient], params=KERNELS, max_norm=0.5)
    for group in ("Conv_0", "Dense_0"):
        kernel = np.asarray(free[group]["kernel"])
        expected = kernel * np.minimum(1, 0.5 / unit_norms(kernel))
        np.testing.assert_allclose(bounded[group]["kernel"], expected, atol=1e-6)
        np.testing.assert_array_equal(bounded[group]["bias"], free[group]["bias"])


def test_max_norm_errors():
    with pytest.raises(ValueError, match="max_norm=-1.0 must be at least 0"):
        run([], max_norm=-1.0)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_optimisers_of_optax_go_by_their_names():
    usual = {"adagrad", "adam", "adamw", "lamb", "lars", "lion", "nadam", "nadamw", "rmsprop", "sgd", "yogi"}
    assert usual < set(known_optimizers()) and not {name for name in known_optimizers() if name.startswith("_")}


@pytest.mark.parametrize("name, options", [
    ("rmsprop", dict(decay=0.8, momentum=0.5)), ("adagrad", {}), ("nadam", dict(b1=0.8)), ("optax.contrib:muon", {}),
])  # fmt: skip
def test_an_optimiser_is_optaxs_with_coupled_decay_or_its_own(name, options):
    params = PARAMS["Block"] | {"kernel": jnp.ones((3, 2))}
    function = optax.contrib.muon if ":" in name else getattr(optax, name)
    own = {"weight_decay": 0.1} if ":" in name else {}
    expected = optax.chain(*([] if own else [optax.add_decayed_weights(0.1)]), function(0.05, **options, **own))
    made = make_optimizer(
        optax.constant_schedule(0.05), **OPTIMIZER | dict(name=name, weight_decay=0.1, options=options)
    )
    states = [made.init(params), expected.init(params)]
    for gradient in (jax.tree.map(jnp.cos, params), jax.tree.map(jnp.sin, params)):
        updates = []
        for i, optimizer in enumerate((made, expected)):
            update, states[i] = optimizer.update(gradient, states[i], params)
            updates.append(update)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *updates)


def test_the_mask_of_what_decays_reaches_an_optimiser_that_decays_itself():
    # Lion's step is lr (sign(g) + wd θ), and sign(0) = 0.
    after = run([scaled(0.0)], name="lion", weight_decay=0.5, decay_batch_norm=False)
    np.testing.assert_array_equal(after["BatchNorm_0"]["scale"], 2.0)
    np.testing.assert_allclose(after["Conv_0"]["bias"], 1.0 - 0.1 * 0.5, rtol=1e-6)
    with pytest.raises(ValueError, match="optimizer.decay_batch_norm=False: novograd takes no mask"):
        run([], name="novograd", weight_decay=0.5, decay_batch_norm=False)
    run([scaled(1.0)], name="novograd", decay_batch_norm=False)


def test_options_are_those_of_the_optimisers_function():
    same(run([scaled(1.0)], name="adamw"), run([scaled(1.0)], name="adamw", options={"b1": 0.9}))
    assert float(run([scaled(1.0), scaled(-1.0)], name="adam", options={"b1": 0.0})["Conv_0"]["bias"][0]) > 1 - 1e-3
    for name, options, message in (
        ("adamw", {"beta2": 0.9}, r"optimizer.options \(of adamw\)='beta2' is unknown.*'b2'"),
        ("adamw", {"eps_rot": 0.9}, "Did you mean 'eps_root'"),
        ("adamw", {"weight_decay": 0.9}, "optimizer.options.weight_decay: set optimizer.weight_decay instead"),
        ("lion", {"learning_rate": 0.9}, "optimizer.options.learning_rate: set schedule.learning_rate instead"),
        ("sgd", {"momentum": 0.9}, "optimizer.options.momentum: set optimizer.momentum instead"),
        ("adam", {"b1": "much"}, "optimizer.name='adam' with .*'b1': 'much'.* cannot train here: TypeError"),
    ):
        with pytest.raises(ValueError, match=message):
            run([], name=name, options=options)
    run([], name="rmsprop", options={"momentum": 0.9})  # whose config has no other key for it


@pytest.mark.parametrize("name, message", [
    ("lbfgs", "missing 3 required"), ("optax.contrib:schedule_free_sgd", "evaluates other weights"),
    ("noisy_sgd", "holds a random key"), ("optax:chain", "has no parameter learning_rate"),
    ("own_optimizers:none", "AttributeError"), ("optax.contrib:moun", "has no attribute 'moun'"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:Specifying a key")
def test_what_cannot_train_here_is_told(name, message, tmp_path, monkeypatch):
    (tmp_path / "own_optimizers.py").write_text("def none(learning_rate): return None")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"optimizer.name='{name}'.*{message}"):
        run([], name=name)


def test_an_optimiser_of_ones_own(tmp_path, monkeypatch):
    code = (
        "import optax\n\ndef signs(learning_rate, scale=1.0): return optax.sign_sgd(lambda s: scale * learning_rate(s))"  # noqa: E501
    )
    (tmp_path / "own_signs.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    after = run([scaled(3.0)], name="own_signs:signs", options={"scale": 0.5})
    np.testing.assert_allclose(after["Conv_0"]["kernel"], [2.95, -3.95], rtol=1e-6)
