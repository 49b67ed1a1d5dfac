"""--config.KEY=VALUE: applied with the type of the key, or refused in one message."""

from __future__ import annotations

import pytest

from benchmarks.reliability import overrides
from config_files import written
from robust_jax import cli
from robust_jax.config import base, command_line, complete
from robust_jax.config.validation import KINDS
from robust_jax.options import REQUIRED, options_of


def overridden(path, *overrides):
    return command_line.overridden(cli.load_config(path), [f"--config.{o}" for o in overrides])


def test_fractions_in_a_file_and_on_the_command_line(tmp_path):
    path = written(tmp_path)
    assert overridden(path).points.adv.radius == 8 / 255
    c = overridden(path, "points.adv.radius=16/255", "attacks.flow.radius=0.5", "terms.fgr.weight=1/3")
    assert (c.points.adv.radius, c.attacks.flow.radius) == (16 / 255, 0.5)
    assert c.terms.fgr.weight == pytest.approx(1 / 3)
    assert overridden(path, "data.data_dir=/some/dir/1").data.data_dir == "/some/dir/1"


def test_values_take_the_type_of_their_key(tmp_path):
    c = overridden(
        written(tmp_path), "epochs=3", "sync_batch_norm", "optimizer.nesterov=true", "schedule.boundaries=(40,60)",
        "attacks.flow.curve=(0,0.5,1)", "terms.fgr.norm=1.5", "model.mean=(0.5,)", "terms.fgr.weight=2",
    )  # fmt: skip
    assert (c.epochs, type(c.epochs), c.sync_batch_norm, c.optimizer.nesterov) == (3.0, float, True, True)
    assert (c.schedule.boundaries, c.attacks.flow.curve, c.model.mean) == ((40, 60), (0, 0.5, 1), (0.5,))
    assert (c.terms.fgr.norm, c.terms.fgr.weight) == (1.5, 2.0)


OTHER = {
    "perturbation": "flow", "norm": "l1", "radius": "1/8", "sigma": "0.3", "at": "adv", "weight": "2.5",
    "other": "again", "reference": "adv", "eta": "1.5", "max_pixels": "7", "gradient": "l1",
    "curve": "(0,2)",
    "loss": "margin", "keep": "last", "batch_norm": "train", "method": "directional", "step_size": "1/100",
    "search": "deepfool", "version": "plus", "rule": "en", "rho": "0.5", "optimizer": "adam", "source": "runs/other",
    "points": "(3,1,1)", "schedule": "10",
}  # fmt: skip


MEANT = {"True": True, "False": False, "1/8": 0.125, "1/100": 0.01, "(0,2)": (0, 2), "(3,1,1)": (3, 1, 1)}


@pytest.mark.parametrize("section, kind", [(s, k) for s, (known, _) in KINDS.items() for k in known])
def test_every_option_of_every_kind_can_be_overridden(section, kind):
    known, own = KINDS[section]
    c = base()
    c.points.adv = dict(kind="random", perturbation="additive", sigma=0.1)
    c.points.again = dict(kind="random", perturbation="additive", sigma=0.1)
    c.terms.ce = dict(kind="cross_entropy")
    sole = {"carlini_wagner": "l2", "ddn": "l2", "ead": "l1", "jsma": "linf", "pointwise": "linf",
            "sigma_zero": "linf"}.get(kind)  # fmt: skip
    space = {"adef": "flow", "stadv": "flow", "grid": "affine"}.get(kind, "additive")
    needed = dict(perturbation=space, norm=sole or "linf", radius=0.1)
    needed |= dict(sigma=0.2, step_size=0.05, other="adv", reference="clean")
    required = [n for n, p in options_of(known[kind]).items() if p.default is REQUIRED]
    options = {*options_of(known[kind]), *own}
    c[section].mine = dict(kind=kind, **{k: v for k, v in needed.items() if k in {*required, *own}})
    c = complete(complete(c))  # as a config read back from a workdir is
    for option in options:
        before = c[section].mine[option]
        if (section, option) == ("attacks", "targeted"):
            with pytest.raises(ValueError, match="true labels only"):
                command_line.overridden(complete(c), ["--config.attacks.mine.targeted=true"])
            continue
        # Their perturbation is that of the other point, and they are at the clean images.
        of_other = kind in ("linearity_gap", "directional_derivative")
        if of_other and option == "at":
            continue
        if sole and option == "norm" or (sole or space != "additive" or of_other) and option == "perturbation":
            continue  # others are refused, see tests/config
        value = OTHER.get(option, "7" if isinstance(before, int) else "0.75")
        if value == before:
            value = {"batch_norm": "eval"}.get(option, "dlr")
        value = str(not before) if isinstance(before, bool) else value
        after = command_line.overridden(complete(c), [f"--config.{section}.mine.{option}={value}"])[section].mine[
            option
        ]
        assert after == MEANT.get(value, float(value) if value.replace(".", "").isdigit() else value) != before, option


def test_a_perturbation_of_ones_own_by_module_and_name(tmp_path, monkeypatch):
    (tmp_path / "my_spaces.py").write_text(
        "from robust_jax.perturbations import affine, compose, flow\nmine, no = compose(flow, affine), 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = written(tmp_path)
    c = overridden(path, "terms.fgr.perturbation=my_spaces:mine")
    assert c.terms.fgr.perturbation == "my_spaces:mine"
    for name, message in (
        ("my_spaces:nothing", "cannot be imported"),
        ("my_spaces:no", "is a int"),
        ("nowhere:x", "nowhere"),
    ):
        with pytest.raises(ValueError, match=f"terms.fgr.*{message}"):
            overridden(path, f"terms.fgr.perturbation={name}")


def test_random_overrides_are_taken_as_written_or_refused_in_one_message():
    counts, listed, _ = overrides.tried(150, seed=7)
    assert listed == []
    assert all(sum(found[end] for found in counts.values()) > 5 for end in (overrides.TAKEN, overrides.REFUSED))


@pytest.mark.parametrize(
    "override, message",
    [
        ("epoch=3", r"config has no key 'epoch'; valid keys are .*'epochs'.*'terms'"),
        ("terms.frg.weight=3", r"config.terms has no key 'frg'; valid keys are \['ce', 'fgr'\]"),
        (
            "terms.fgr.wieght=3",
            r"no key 'wieght'; valid keys are \['at', 'batch_norm', 'kind', 'method', 'norm'.*'weight'\]",
        ),
        ("epochs.x=3", "config.epochs has no key 'x'; it is a value"),
        ("terms=3", r"is a group.*\['ce', 'fgr'\]"),
        ("batch_size=1.5", "batch_size.*1.5"),
        ("epochs=many", "epochs.*many"),
        ("epochs", "Missing value for flag --config.epochs"),
        ("points.adv.radius=8/x", "8/x"),
        ("optimizer.nesterov=perhaps", "nesterov.*perhaps"),
        ("model.name=vgg12", "model.name='vgg12'.*'vgg11', 'vgg13', 'vgg16', 'vgg19'"),
        ("attacks.flow.step_size=small", "attacks.flow.step_size='small'.*8/255"),
        ("points.adv.radius=-1", "radius=-1.0"),
        ("model.mean={'a': 1}", "model.mean.*is no tuple"),
        ("batch_size=\n", r"batch_size=\\n"),
        ("attacks.flow.loss=" + "9" * 400, "attacks.flow.loss='999.*unknown"),
    ],
)
def test_wrong_overrides(override, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        overridden(written(tmp_path), override)


def test_fractions_inside_a_tuple(tmp_path):
    c = base()
    c.terms.ce = dict(kind="cross_entropy")
    c.attacks.turn = dict(kind="pgd", perturbation="affine", radius=(30.0, 3.0, 3.0))
    changed = command_line.overridden(complete(c), ["--config.attacks.turn.radius=(15.0, 1/2, 3.0)"])
    assert changed.attacks.turn.radius == (15.0, 0.5, 3.0)
    c.attacks.turn = dict(kind="pgd", perturbation="affine", radius=1.0)
    changed = command_line.overridden(complete(c), ["--config.attacks.turn.radius=(15, 1/2, 3)"])
    assert changed.attacks.turn.radius == (15.0, 0.5, 3.0)


def test_a_schedule_is_overridden_in_parts_or_by_a_number():
    config = base()
    config.terms.ce = dict(kind="cross_entropy")
    config.terms.igr = dict(kind="gradient_norm", perturbation="additive", weight=dict(start=0, end=4, epochs=10))
    config = complete(config)
    assert command_line.overridden(config, ["--config.terms.igr.weight.end=4.4"]).terms.igr.weight.end == 4.4
    assert command_line.overridden(config, ["--config.terms.igr.weight=0"]).terms.igr.weight == 0
    with pytest.raises(ValueError, match="is a group"):
        command_line.overridden(config, ["--config.terms.igr=0"])


def test_options_of_the_model_are_overridden_by_name():
    config = base("mnist", "small_cnn")
    config.terms.ce = dict(kind="cross_entropy")
    changed = command_line.overridden(
        complete(config), ["--config.model.options.dropout=0.5", "--config.model.options.activation=silu"]
    )
    assert changed.model.options.to_dict() == {"dropout": 0.5, "activation": "silu"}


def test_an_override_may_give_options_of_the_optimiser_and_writers():
    config = base()
    config.terms.ce = dict(kind="cross_entropy")
    given = ["--config.optimizer.name=lion", "--config.optimizer.options.b2=9/10", "--config.writers=('wandb',)"]
    changed = command_line.overridden(complete(config), given)
    assert changed.optimizer.options.to_dict() == {"b2": 0.9} and changed.writers == ("wandb",)
    with pytest.raises(ValueError, match=r"optimizer.options \(of sgd\)='b2' is unknown"):
        command_line.overridden(complete(config), given[1:2])


def test_text_that_looks_like_a_number_stays_text(tmp_path):
    path = written(tmp_path)
    config = overridden(path, "data.data_dir=2024/05", "attacks.flow.source=3", "attacks.flow.radius=1/5")
    assert (config.data.data_dir, config.attacks.flow.source, config.attacks.flow.radius) == ("2024/05", "3", 0.2)
    assert complete(config).attacks.flow.source == "3"


def test_a_single_value_of_a_tuple_and_names_without_quotes(tmp_path):
    c = overridden(written(tmp_path), "model.mean=0.5", "writers=tensorboard", "schedule.boundaries=3")
    assert (c.model.mean, c.writers, c.schedule.boundaries) == ((0.5,), ("tensorboard",), (3,))
    assert overridden(written(tmp_path), "writers=(tensorboard, wandb)").writers == ("tensorboard", "wandb")
