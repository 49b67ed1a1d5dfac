"""Training on digits with a tiny model: what it leaves, which checkpoint is best, how it resumes and how it fails."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from robust_jax import data, models, parallel
from robust_jax.config import base, build, optimizers
from robust_jax.data import batches as data_batches
from robust_jax.objectives import terms
from robust_jax.objectives.objective import make_objective
from robust_jax.training import loop as training
from robust_jax.training import stopping
from robust_jax.training.loop import NonFiniteLossError, train
from robust_jax.training.step import init_state, make_train_step
from robust_jax.workdir import checkpoints, folder, runs

pytestmark = pytest.mark.usefixtures("quick_compile", "tiny")


class Tiny(nn.Module):
    """One hidden layer, with BatchNorm."""

    num_classes: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(12, use_bias=False, dtype=self.dtype)(images.reshape(len(images), -1))
        x = nn.tanh(nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, dtype=jnp.float32)(x)


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Most runs here are of the same programs."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(tmp_path_factory.mktemp("compiled")), 0), strict=True):
        jax.config.update(name, value)
    reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(models.MODELS, "tiny", Tiny)


def config(**changes):
    """12 steps of 16 of 64 images, an evaluation every 4, a log line every 3."""
    c = base("digits", "tiny")
    c.data.limit, c.batch_size, c.epochs, c.select_limit, c.log_every_steps = 64, 16, 3.0, 40, 3
    c.schedule.learning_rate = 0.2
    c.terms.ce = dict(kind="cross_entropy", at="clean")
    c.attacks.shift = dict(kind="pgd", perturbation="additive", radius=0.1, steps=2)
    for path, value in changes.items():
        *groups, name = path.split("__")
        at = c
        for group in groups:
            at = at[group]
        at[name] = value
    return c


def lines(workdir, drop=("steps_per_second",)):
    text = (workdir / "metrics.jsonl").read_text()
    return [{k: v for k, v in json.loads(line).items() if k not in drop} for line in text.splitlines()]


def saved_states(workdir):
    with checkpoints.opened(workdir) as saved:
        return {k: (saved.step(k), saved.restore(k)) for k in checkpoints.KINDS if saved.step(k) is not None}


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def reference(tmp_path_factory, quick_compile):
    """An uninterrupted run: its folder and last state."""
    workdir = tmp_path_factory.mktemp("training") / "reference"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", Tiny)
        return workdir, train(config(), workdir)


def test_what_a_run_leaves(reference):
    workdir, state = reference
    assert int(state.step) == 12 and finite(state)
    assert {"config.json", "metrics.jsonl", "checkpoints"} <= {p.name for p in workdir.iterdir()}
    assert list(workdir.glob("events.out.tfevents.*"))
    train_lines = [line for line in lines(workdir) if "loss" in line]
    validations = [line for line in lines(workdir) if "validation/clean" in line]
    assert [line["step"] for line in train_lines] == [3, 4, 6, 8, 9, 12]
    assert [(line["step"], line["epoch"]) for line in validations] == [(4, 1.0), (8, 2.0), (12, 3.0)]
    assert set(train_lines[0]) == {"step", "epoch", "loss", "accuracy", "terms/ce", "learning_rate"}
    assert train_lines[-1]["loss"] < 0.5 * train_lines[0]["loss"] and train_lines[0]["learning_rate"] == pytest.approx(
        0.2
    )
    states = saved_states(workdir)
    assert states["latest"][0] == 12
    same(states["latest"][1]["params"], state.params)
    # Best on validation, the last of equals; and its accuracy can be measured again.
    accuracies = [line["validation/clean"] for line in validations]
    assert states["best"][0] == [v["step"] for v in validations if v["validation/clean"] == max(accuracies)][-1]
    assert state.best == np.float32(max(accuracies))
    found = runs.load(workdir, "best")
    batch = found.dataset.validation.take(np.arange(40))
    predicted = models.bind(found.model, found.variables)(data.to_float(batch["image"])).argmax(-1)
    assert float((predicted == batch["label"]).mean()) == pytest.approx(max(accuracies))


def test_a_finished_run_started_again_does_nothing(reference):
    workdir, state = reference
    before = lines(workdir, drop=())
    same(train(config(), workdir).params, state.params)
    assert lines(workdir, drop=()) == before


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Not all batches of these short runs at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_batches, "_MOST_TOGETHER", 2)
        yield


class Killed(Exception):
    pass


def change_batches(patch, change):
    """Training gets ``change(step, batch)`` in the place of each step's batch."""
    make = data.train_blocks

    def blocks(source, batch_size, seed, start, *rest):
        for block in make(source, batch_size, seed, start, *rest):
            count = len(block["label"])
            parts = [change(start + 1 + i, {k: v[i] for k, v in block.items()}) for i in range(count)]
            start += count
            yield {k: np.stack([part[k] for part in parts]) for k in block}

    patch.setattr(data, "train_blocks", blocks)


def killed_at(step):
    def change(at, batch):
        if at == step:
            raise Killed
        return batch

    return change


@pytest.mark.parametrize("moment", ["batch 9", "latest 8", "best 4"])
def test_a_run_that_died_and_was_started_again_ends_with_the_same_bits(moment, reference, tmp_path, monkeypatch):
    what, at = moment.split()
    save = checkpoints.Checkpoints.save

    def saving(self, kind, step, state, *rest):
        if (what, str(step)) == (kind, at):
            raise Killed  # "latest": the best of that step is there already
        save(self, kind, step, state, *rest)

    with monkeypatch.context() as patch:
        change_batches(patch, killed_at(int(at) if what == "batch" else None))
        patch.setattr(checkpoints.Checkpoints, "save", saving)
        with pytest.raises(Killed):
            train(config(), tmp_path)
    state = train(config(), tmp_path)
    same(state, reference[1])
    assert lines(tmp_path) == lines(reference[0])
    expected, states = saved_states(reference[0]), saved_states(tmp_path)
    for kind in checkpoints.KINDS:
        assert states[kind][0] == expected[kind][0]
        same(states[kind][1], expected[kind][1])


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_saves_the_step_that_is_under_way(name, code, reference, tmp_path, monkeypatch, capfd, request):
    def kill(step, batch):
        if step == 6:  # between two log steps of 5: the metrics since then are saved as well
            os.kill(os.getpid(), getattr(signal, name))
        return batch

    for number in stopping.SIGNALS:  # a test run in the background may ignore some
        handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        request.addfinalizer(partial(signal.signal, number, signal.signal(number, handler)))
    handlers = [signal.getsignal(s) for s in stopping.SIGNALS]
    with monkeypatch.context() as patch, pytest.raises(stopping.Stopped, match=f"{name}: saved step 5 of 12") as info:
        change_batches(patch, kill)
        train(config(log_every_steps=5), tmp_path)
    assert info.value.exit_code == code and "once more to end at once" in capfd.readouterr().err
    assert [signal.getsignal(s) for s in stopping.SIGNALS] == handlers
    with checkpoints.opened(tmp_path) as saved:
        assert saved.step("latest") == 5


@pytest.mark.parametrize("at", [4, 12])  # the last step's as well
def test_a_signal_during_a_validation_loses_no_step(at, reference, tmp_path, monkeypatch):
    measure, log = training.robustness, training.TrainingLog.write

    def signalled(logits_fn, batches, *rest, **options):
        if int(batches._requests.step) == at:
            batches._requests.number = signal.SIGTERM
        return measure(logits_fn, batches, *rest, **options)

    def written(self, step, *rest, **options):
        log(self, step, *rest, **options)
        monkeypatch.setattr(stopping.Requests, "step", step, raising=False)

    def killed(self, kind, step, *rest, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingLog, "write", written)
        patch.setattr(training, "robustness", signalled)
        with pytest.raises(stopping.Stopped, match=f"SIGTERM: saved step {at} of 12"):
            train(config(), tmp_path)
    assert saved_states(tmp_path)["latest"][0] == at and lines(tmp_path)[-1]["step"] == at
    with monkeypatch.context() as patch:  # killed once more, after the validation is logged
        patch.setattr(checkpoints.Checkpoints, "save", killed)
        with pytest.raises(Killed):
            train(config(), tmp_path)
    assert "validation/clean" in lines(tmp_path)[-1]
    same(train(config(), tmp_path), reference[1])
    assert lines(tmp_path) == lines(reference[0])
    with checkpoints.opened(tmp_path) as saved:
        assert saved.newest(("latest",)).notes["validated"]


def stop_at(monkeypatch, step):
    """Stops a run after this step, as a signal would."""
    steps = iter(range(1, 100))
    monkeypatch.setattr(stopping.Requests, "agreed", lambda self: next(steps) == step)


def test_a_run_that_was_stopped_between_log_steps_ends_with_the_same_bits_and_lines(reference, tmp_path, monkeypatch):
    for at in (2, 5, 10):  # steps of a fresh run, then of those that go on
        with monkeypatch.context() as patch, pytest.raises(stopping.Stopped):
            patch.setattr(training, "_TOGETHER", 0)  # one step at a time
            start = saved_states(tmp_path).get("latest", (0,))[0]
            stop_at(patch, at - start)
            train(config(), tmp_path)
        assert saved_states(tmp_path)["latest"][0] == at
    same(train(config(), tmp_path), reference[1])
    assert lines(tmp_path) == lines(reference[0])


def test_saving_by_time_changes_nothing(reference, tmp_path, monkeypatch):
    saved = []
    save = checkpoints.Checkpoints.save

    def saving(self, kind, step, *rest):
        saved.append((kind, step))
        save(self, kind, step, *rest)

    monkeypatch.setattr(checkpoints.Checkpoints, "save", saving)
    monkeypatch.setattr(training, "_TOGETHER", 0)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        change_batches(patch, killed_at(11))
        train(config(checkpoint_every_minutes=1e-9), tmp_path)
    assert [step for kind, step in saved if kind == "latest"] == list(range(1, 11))
    same(train(config(checkpoint_every_minutes=0.0, keep_checkpoints=1), tmp_path), reference[1])
    assert lines(tmp_path) == lines(reference[0])
    assert [step for kind, step in saved if kind == "latest"][10:] == [12]


def test_a_second_run_in_the_same_folder_is_refused(tmp_path, monkeypatch):
    refused = []

    def again(step, batch):
        with pytest.raises(folder.WorkdirError, match="another process trains in it"):
            train(config(seed=1), tmp_path)
        refused.append(step)
        return batch

    change_batches(monkeypatch, again)
    train(config(epochs=0.5), tmp_path)
    assert refused
    train(config(epochs=0.5), tmp_path)  # and free again


def copied(reference, tmp_path):
    shutil.copytree(reference[0], tmp_path / "run")
    return tmp_path / "run"


def test_damage_costs_steps_and_no_bits(reference, tmp_path, caplog):
    workdir = copied(reference, tmp_path)
    newest = workdir / "checkpoints" / "latest" / "12"
    for path in newest.rglob("d/*"):
        path.write_bytes(b"")
    same(train(config(), workdir), reference[1])
    assert f"{newest} is damaged" in caplog.text and str(newest.with_name("8")) in caplog.text
    assert lines(workdir) == lines(reference[0])
    shutil.rmtree(workdir / "checkpoints" / "latest")
    same(train(config(), workdir), reference[1])
    shutil.rmtree(workdir / "checkpoints")
    same(train(config(), workdir), reference[1])
    assert "reaches step 12, but there is no checkpoint: starting at step 0" in caplog.text


def test_a_checkpoint_of_another_config_is_noticed(reference, tmp_path):
    workdir = copied(reference, tmp_path)
    train(config(seed=1, epochs=3.5), tmp_path / "other")
    shutil.move(tmp_path / "other" / "checkpoints" / "latest" / "14", workdir / "checkpoints" / "latest")
    for call in (lambda: train(config(), workdir), lambda: runs.load(workdir, "latest")):
        with pytest.raises(ValueError, match="latest/14 is of another config.*seed: 1 there, 0 now"):
            call()


def test_a_disk_that_fills_up_is_one_message(tmp_path, monkeypatch):
    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(training.TrainingLog, "write", full)
    with pytest.raises(folder.WorkdirError, match="No space left on device.*intact"):
        train(config(), tmp_path)


def test_logging_and_saving_change_no_weight(reference, tmp_path):
    state = train(config(log_every_steps=5, checkpoint_every_steps=2), tmp_path)
    same(state.params, reference[1].params)
    with pytest.raises(ValueError, match="schedule.learning_rate: 0.2 there, 0.3 now"):
        train(config(schedule__learning_rate=0.3), tmp_path)


def test_the_best_checkpoint_is_that_of_select_by(tmp_path, monkeypatch):
    clean, robust = iter((0.5, 0.6, 0.7)), iter((0.3, 0.4, 0.2))
    monkeypatch.setattr(training, "_validate", lambda *_: {"clean": next(clean), "shift": next(robust)})
    train(config(select_by="shift"), tmp_path)
    states = saved_states(tmp_path)
    assert (states["best"][0], states["latest"][0]) == (8, 12)
    assert int(states["best"][1]["step"]) == 8


def test_selection_under_attack_measures_that_attack(tmp_path):
    import robust_jax as rj

    c = config(
        select_by="shift", attacks__shift=dict(kind="pgd", perturbation="additive", radius=0.1, steps=3), epochs=2.0
    )
    train(c, tmp_path)
    validations = [line for line in lines(tmp_path) if "validation/shift" in line]
    assert [line["step"] for line in validations] == [4, 8]
    assert all(line["validation/shift"] < line["validation/clean"] for line in validations)
    best = max(validations, key=lambda line: (line["validation/shift"], line["step"]))
    found = runs.load(tmp_path)
    assert found.step == best["step"]
    report = rj.evaluate(tmp_path, split="validation", limit=40, progress=False)[str(tmp_path)]
    assert report["attacks"]["shift"]["accuracy"] == pytest.approx(best["validation/shift"])
    assert report["clean"]["accuracy"] == pytest.approx(best["validation/clean"])


def steps_of(c, count):
    """The states of some steps, taken by hand."""
    dataset = build.load_dataset(c)
    model = build.create_model(c, 10)
    schedule = optimizers.make_schedule(**c.schedule, epochs=3.0, steps_per_epoch=4.0)
    optimizer = optimizers.make_optimizer(
        schedule, **{k: v for k, v in c.optimizer.items() if k not in optimizers.OF_STEP}
    )
    step = parallel.pmap(
        make_train_step(
            model,
            make_objective({}, c.terms),
            optimizer,
            augmentation={},
            ema=c.optimizer.ema,
            adversarial_weights=c.optimizer.adversarial_weights,
        )  # fmt: skip
    )
    state = jax.device_get(init_state(build.init_variables(model, (8, 8, 1), 0), optimizer, c.optimizer.ema))
    states, batches = [state], data.train_batches(dataset.train, 16, 0)
    for _ in range(count):
        state, _ = step(parallel.replicate(states[-1]), parallel.shard(next(batches)), jax.random.key(0))
        states.append(parallel.first(state))
    return states


def test_averaged_weights_follow_the_recurrence_and_are_the_ones_validated(reference, tmp_path):
    states = steps_of(config(optimizer__ema=0.75), 4)
    average = states[0].params
    for step, state in enumerate(states[1:]):
        decay = min(0.75, (1 + step) / (10 + step))
        average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, state.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.ema["params"], average)
    c = config(optimizer__ema=0.75)
    final = train(c, tmp_path)
    # Averaging beside training changes nothing in it, but for the roundings of another program.
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
    jax.tree.map(close, final.params, reference[1].params)
    same(runs.load(tmp_path, "latest").variables["params"], final.ema["params"])


def test_a_step_is_the_optimisers_step_along_the_gradient_of_the_mean_loss():
    c = config(optimizer__weight_decay=0.1)
    before, after = steps_of(c, 1)
    dataset, model = build.load_dataset(c), build.create_model(c, 10)
    batch = next(data.train_batches(dataset.train, 16, 0))
    images, labels = data.to_float(batch["image"]), batch["label"]

    def loss(params):
        variables = {"params": params, "batch_stats": before.batch_stats}
        logits, new = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return -jax.nn.log_softmax(logits)[jnp.arange(16), labels].mean(), new["batch_stats"]

    gradient, statistics = jax.jit(jax.grad(loss, has_aux=True))(before.params)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
    jax.tree.map(close, after.params, jax.tree.map(lambda p, g: p - 0.2 * (g + 0.1 * p), before.params, gradient))
    jax.tree.map(close, after.batch_stats, statistics)


def test_adversarial_weights_step_along_the_gradient_uphill():
    before, after = steps_of(config(optimizer__adversarial_weights=0.1), 1)
    dataset, model = build.load_dataset(config()), build.create_model(config(), 10)
    batch = next(data.train_batches(dataset.train, 16, 0))
    images, labels = data.to_float(batch["image"]), batch["label"]

    def loss(params):
        variables = {"params": params, "batch_stats": before.batch_stats}
        logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return -jax.nn.log_softmax(logits)[jnp.arange(16), labels].mean()

    gradient = jax.jit(jax.grad(loss))
    uphill = gradient(before.params)

    def moved(w, g):
        return w + 0.1 * np.linalg.norm(w) * g / np.linalg.norm(g) if w.ndim > 1 else w

    there = jax.tree.map(moved, before.params, uphill)
    assert loss(there) > loss(before.params) + 0.01
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
    jax.tree.map(close, after.params, jax.tree.map(lambda p, g: p - 0.2 * g, before.params, gradient(there)))


def test_what_a_point_remembers_is_carried_saved_and_resumed(tmp_path, monkeypatch):
    universal = dict(kind="universal", perturbation="additive", radius=0.1, step_size=0.02)
    changes = dict(points__all=universal, terms__ce=dict(kind="cross_entropy", at="all"))
    whole = train(config(**changes), tmp_path / "whole")
    delta = whole.memory["all"]
    assert delta.shape == (1, 8, 8, 1)
    assert 0.05 < np.abs(delta).max() <= 0.1 * 1.0001
    with monkeypatch.context() as patch, pytest.raises(Killed):
        change_batches(patch, killed_at(7))
        train(config(**changes), tmp_path / "cut")
    same(train(config(**changes), tmp_path / "cut"), whole)


def poison(monkeypatch, at, term):
    """Makes the batch of one step all white, where the term `poison` fails."""

    def white(step, batch):
        return batch | {"image": np.full_like(batch["image"], 255)} if step == at else batch

    def poison(here, *, strength: float = 0.0):
        return term(here, (here.images.min() == 1))

    change_batches(monkeypatch, white)
    monkeypatch.setitem(terms.TERMS, "poison", poison)


BAD = {
    "value": (lambda here, bad: jnp.where(bad, jnp.inf, here.loss), "the term 'the_bad'"),
    # Finite itself; the derivative of the root at 0 is not.
    "gradient": (lambda here, bad: jnp.sqrt(jnp.where(bad, 0, 1) * here.loss), "the gradient"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_term(kind, tmp_path, monkeypatch):
    term, name = BAD[kind]
    poison(monkeypatch, 5, term)
    c = config(checkpoint_every_steps=6)
    c.terms.the_bad = dict(kind="poison", weight=0.1)
    with pytest.raises(NonFiniteLossError, match=f"at step 5 {name}.*learning_rate"):
        train(c, tmp_path)
    # Noticed at the next log step, 6, whose checkpoint was not written.
    assert [line["step"] for line in lines(tmp_path) if "loss" in line] == [3, 4]
    states = saved_states(tmp_path)
    assert {k: s for k, (s, _) in states.items()} == {"latest": 4, "best": 4}
    assert all(finite(state) for _, state in states.values())


def test_the_failing_update_is_skipped_on_the_device(monkeypatch):
    monkeypatch.setitem(terms.TERMS, "poison", lambda here: jnp.where(here.images.min() >= 0, jnp.nan, 0) * here.loss)
    c = config()
    c.terms.bad = dict(kind="poison", weight=1.0)
    before, *later = steps_of(c, 2)
    for state in later:
        same((state.params, state.batch_stats, state.opt_state), (before.params, before.batch_stats, before.opt_state))
        assert (int(state.failed_step), int(state.failed_term)) == (0, 0)  # the first failure stays; bad, ce
    assert int(later[-1].step) == 2


def test_an_update_that_overflows_is_never_saved(tmp_path):
    c = config(schedule__learning_rate=3e38, log_every_steps=1, eval_every_epochs=0.25)
    c.terms.ce.weight = 1000.0
    with pytest.raises(NonFiniteLossError, match="at step 1 the gradient or the update"):
        train(c, tmp_path)
    assert saved_states(tmp_path) == {}


def test_clip_norm_tames_a_huge_gradient(tmp_path):
    c = config(optimizer__clip_norm=1e-3, optimizer__momentum=0.0, epochs=0.25)
    c.terms.ce.weight = 1e6
    before = build.init_variables(build.create_model(c, 10), (8, 8, 1), 0)["params"]
    after = train(c, tmp_path).params
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), after, before)
    length = np.sqrt(sum((m.astype(np.float64) ** 2).sum() for m in jax.tree.leaves(moved)))
    assert length == pytest.approx(0.2 * 1e-3, rel=1e-2)


def test_max_norm_bounds_every_unit_of_the_trained_network(tmp_path):
    params = train(config(optimizer__max_norm=0.5, epochs=0.5), tmp_path).params
    for layer in ("Dense_0", "Dense_1"):
        norms = np.linalg.norm(np.asarray(params[layer]["kernel"]), axis=0)
        assert norms.max() == pytest.approx(0.5, rel=1e-5)  # both start at about 1


def test_bfloat16_computes_in_half_and_keeps_weights_and_loss_in_float32(tmp_path):
    c = config(model__dtype="bfloat16", epochs=1.0)
    c.terms.igr = dict(kind="gradient_norm", perturbation="additive", weight=0.1)
    state = train(c, tmp_path / "half")
    c.model.dtype = "float32"
    train(c, tmp_path / "whole")
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.batch_stats))} == {np.dtype("float32")}
    assert finite(state)
    half, whole = (lines(tmp_path / name)[0] for name in ("half", "whole"))
    for term in ("terms/ce", "terms/igr"):  # a rounding to 8 bits is off by up to 0.2%, and there are a few
        assert 0 < abs(half[term] / whole[term] - 1) < 0.02, (term, half[term], whole[term])


def test_impossible_settings_fail_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="sync_batch_norm=True: the model 'tiny' has no BatchNorm"):
        train(config(sync_batch_norm=True), tmp_path / "a")
    with pytest.raises(ValueError, match="one_cycle has a warm-up of its own"):
        train(config(schedule__name="one_cycle", schedule__warmup_epochs=1.0), tmp_path / "a")
    with pytest.raises(ValueError, match="data.limit=5000: give 1 to 1293"):
        train(config(data__limit=5000), tmp_path / "a")
    with pytest.raises(ValueError, match="batch_size=5000 is more than the 40 training images"):
        train(config(data__limit=40, batch_size=5000), tmp_path / "a")
    unfit = config()
    unfit.attacks.unfit = dict(kind="pgd", perturbation="flow", radius=(0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match=r"attacks.unfit.*radius=.*flow has shape \(3,\), but δ has \(2, 8, 8, 2\)"):
        train(unfit, tmp_path / "a")
    (tmp_path / "file").touch()
    for workdir, message in (("", "workdir='' is no name of a folder"), (tmp_path / "file", "must be a folder")):
        with pytest.raises(ValueError, match=message):
            train(config(), workdir)
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    with pytest.raises(ValueError, match="batch_size=16 does not split evenly over 3 devices"):
        train(config(), tmp_path / "a")
    assert not (tmp_path / "a").exists()


OWN = """
import flax.linen as nn
import numpy as np
from robust_jax.data import Source


class Linear(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1))


def halves():
    labels = np.arange(60) % 2
    images = np.zeros((60, 4, 4, 1), np.uint8)
    images[labels == 1, :2] = 200
    source = Source.from_arrays(images, labels, 2)
    return source.subset(np.arange(40)), source.subset(np.arange(40, 60))
"""


def test_a_model_and_a_dataset_of_ones_own_are_trained_and_restored(tmp_path, monkeypatch, caplog):
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    c = config(data__name="own_parts:halves", model__name="own_parts:Linear", data__limit=0, epochs=4.0)
    train(c, tmp_path / "run")
    found = runs.load(tmp_path / "run", trust=("own_parts",))
    assert (found.dataset.name, found.dataset.num_classes) == ("own_parts:halves", 2)
    images, labels = data.first_examples(found.dataset.test, 20)
    predicted = models.bind(found.model, found.variables)(images).argmax(-1)
    np.testing.assert_array_equal(predicted, labels)
    train(c, tmp_path / "run")
    assert "changed after" not in caplog.text
    os.utime(tmp_path / "own_parts.py", (time.time() + 60,) * 2)
    train(c, tmp_path / "run")
    assert f"{tmp_path / 'own_parts.py'} changed after {tmp_path / 'run' / 'checkpoints' / 'latest'}" in caplog.text
    with pytest.raises(ValueError, match="own_parts:Linaer"):
        train(config(model__name="own_parts:Linaer"), tmp_path / "other")
    with pytest.raises(ValueError, match="own_parts:havles"):
        train(config(data__name="own_parts:havles"), tmp_path / "other")


def test_points_without_a_term_and_sources_that_do_not_exist_are_told_before_training(tmp_path, caplog):
    spec = dict(kind="pgd", perturbation="additive", radius=0.1, source=str(tmp_path / "other"))
    point = dict(kind="random", perturbation="additive", sigma=0.1)
    training.prepare(config(attacks__moved=spec, points__idle=point))
    assert "No term uses the points ['idle']" in caplog.text
    assert f"attacks.moved.source={tmp_path / 'other'}: there is no such workdir yet" in caplog.text
    (tmp_path / "other").mkdir()
    caplog.clear()
    training.prepare(config(attacks__moved=spec))
    assert caplog.text == ""


def test_a_schedule_that_ends_after_the_run_is_told_before_training(caplog):
    late = dict(schedule__name="piecewise", schedule__boundaries=(0.5, 40.0), schedule__warmup_epochs=50.0)
    training.prepare(config(**late))
    assert "schedule: boundaries=40, warmup_epochs=50 is not reached in epochs=" in caplog.text


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (dict(schedule__boundaries=(1.0,)), "schedule.boundaries=(1.0,) has no effect with schedule.name=constant"),
        (dict(schedule__name="cosine", schedule__factor=0.2), "schedule.factor=0.2 has no effect with schedule.name="),
        (dict(optimizer__name="adam", optimizer__nesterov=True), "optimizer.nesterov=True has no effect with opt"),
        (dict(optimizer__name="adam", optimizer__momentum=0.5), "optimizer.momentum=0.5 has no effect with optimizer."),
        (dict(optimizer__name="adam"), ""),
        (dict(schedule__name="piecewise", schedule__boundaries=(0.5,), schedule__factor=0.2), ""),
        (dict(optimizer__name="sgd", optimizer__nesterov=True, optimizer__momentum=0.5), ""),
    ],
)
def test_keys_that_nothing_reads_are_told_before_training(keys, told, caplog):
    training.prepare(config(**keys))
    assert told in caplog.text and ("no effect" in caplog.text) == bool(told)


def test_training_works_in_double_precision(tmp_path):
    with jax.enable_x64(True):
        state = train(config(epochs=0.5), tmp_path / "run")
    assert int(state.step) > 0 and int(state.failed_term) == int(state.failed_step)


def test_validation_computes_at_the_precision_of_training(tmp_path, monkeypatch):
    original, found = training.robustness, []

    def seen(*given, precision="float32", **options):
        found.append(precision)
        return original(*given, precision=precision, **options)

    monkeypatch.setattr(training, "robustness", seen)
    train(config(epochs=1.0, precision="tensorfloat32"), tmp_path / "run")
    assert set(found) == {"tensorfloat32"}


def test_a_run_says_what_is_due():
    run = training.Run(config(checkpoint_every_steps=5), *[None] * 4, steps_per_epoch=4.0, total_steps=13)
    due = {step: "".join(name[0] for name, so in run.due(step)._asdict().items() if so) for step in range(1, 14)}
    expected = {3: "l", 4: "lvs", 5: "ls", 6: "l", 8: "lvs", 9: "l", 10: "ls", 12: "lvs", 13: "lvs"}
    assert due == {step: expected.get(step, "") for step in due}
    for step in range(13):
        assert step + run.until_due(step) == min(later for later in expected if later > step)
