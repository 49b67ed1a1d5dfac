"""The tables on CIFAR-10, CIFAR-100 and SVHN: FGR, smooth activations, local flatness, region training, the family."""

from __future__ import annotations

from table_types import Choice, Row, Table, Universal, against, in_ball_of
from tables_mnist import NOISE, smooth_pairs, smooth_rows

PIXELS = 0.155  # 0.01 in the normalised units of the FGR paper, on images of 32 pixels
# The FGR reference's own: all steps of a coordinate together are as long as the radius.
WEAK = dict(kind="pgd", perturbation="tables:zero_padded", norm="linf", radius=PIXELS, steps=100,
            step_size=PIXELS / 100, random_start=False, keep="last")  # fmt: skip
FLOW = dict(perturbation="flow", norm="linf", radius=PIXELS)
ADDITIVE = dict(kind="apgd", perturbation="additive", norm="linf", steps=20, restarts=2)
CIFAR_ATTACKS = {
    "flow_reference": WEAK,
    "flow_pgd": dict(kind="pgd", steps=40, restarts=3, early_stop=True, **FLOW),
    "flow_apgd": dict(kind="apgd", steps=40, restarts=3, early_stop=True, **FLOW),
    "flow_square": dict(kind="square", queries=1000, **FLOW),
    "flow_0_5": dict(kind="pgd", steps=40, restarts=3, early_stop=True) | FLOW | dict(radius=0.5),
    "additive_2_255": ADDITIVE | dict(radius=2 / 255, early_stop=True),
    "additive_8_255": ADDITIVE | dict(radius=8 / 255, early_stop=True),
    # Not by ascent, which misses many of these (docs/optimality.md), and more on a standard network than with FGR.
    "affine": dict(kind="grid", perturbation="affine", norm="linf", radius=(10.0, 1.0, 1.0), points=(11, 5, 5)),
}  # fmt: skip
# Penalties are compared at the clean accuracy that the larger weight of FGR costs.
LIKE_FGR = Choice("terms.igr.weight", (1.0, 0.5, 0.25, 0.12, 0.06), like="fgr_300")
# On ResNet-20, 6 epochs of 10,000 images, validation accuracy is 44.3, 47.1, 49.5 and 52.2% at the first four, and 54.3
# with FGR.
TRIED = {"resnet20": LIKE_FGR._replace(values=(0.12, 0.06, 0.03))}
WORST = {"worst flow": in_ball_of("flow_pgd", CIFAR_ATTACKS)}
# Of tables with many rows, each of which would take two cores days on all images.
FEWER = ("data.limit=10000",)
ONE_CYCLE = ("schedule.name=one_cycle", "schedule.learning_rate=0.1", "checkpoint_every_steps=50")
# What the paper says that FGR is better than.
CLAIMED = (("fgr_300", "random_start"), ("fgr_100", "random_start"), ("fgr_300", "igr"))


def _cifar(model: str, name: str) -> dict[str, Table]:
    title = f"CIFAR-10, {name}: flow-gradient regularisation (Xia & Li 2021)"
    config = "cifar10_reference_methods"
    rows = {
        "standard": Row("standard", f"{config}:standard"),
        "random_start": Row("random start alone (λ = 0)", f"{config}:random_flow"),
        "igr": Row("input-gradient regularisation", f"{config}:igr", TRIED.get(model, LIKE_FGR)),
        # The reference's λ / 128² (31 / 2)², see cifar10_vgg11_fgr.
        "fgr_100": Row("FGR, λ = 100", f"{config}:fgr:terms.fgr.weight=1.47"),
        "fgr_300": Row("FGR, λ = 300", f"{config}:fgr:terms.fgr.weight=4.40"),
        "adt_3": Row("adversarial deformation training, 3 steps", f"{config}:adt:points.attacked.steps=3"),
    }
    full = (f"model.name={model}",)
    short = (*full, "epochs=12", *ONE_CYCLE)
    pairs = (*against(rows, "standard"), *CLAIMED, ("fgr_300", "adt_3"))
    return {
        "short": Table(title, rows, short, CIFAR_ATTACKS, WORST, 1000, (0,), pairs),
        "full": Table(title, rows, full, CIFAR_ATTACKS, WORST, 10_000, (0, 1, 2), pairs),
    }


def _paper(dataset: str, name: str, model: str) -> dict[str, Table]:
    """FGR with the settings of its paper, which differ from its repository's newest; see cifar10_fgr_paper."""
    title = f"{name}, {model}, the settings of the paper: flow-gradient regularisation (Xia & Li 2021)"
    config = f"{dataset}_fgr_paper"
    rows = {
        "standard": Row("standard", f"{config}:standard"),
        "random_start": Row("random start alone (the paper's λ = 0)", f"{config}:random_flow"),
        "igr": Row("input-gradient regularisation", f"{config}:igr", LIKE_FGR),
        # λ / 256² (31 / 2)²
        "fgr_100": Row("FGR, λ = 100", f"{config}:fgr:terms.fgr.weight=0.367"),
        "fgr_300": Row("FGR, λ = 300", f"{config}:fgr:terms.fgr.weight=1.10"),
    }
    pairs = (*CLAIMED, *against(rows, "standard"))
    # Two cores would take days.
    return {"full": Table(title, rows, (f"model.name={model}",), CIFAR_ATTACKS, WORST, 10_000, (0, 1, 2), pairs)}


def _smooth() -> dict[str, Table]:
    """The weights that are tried are unlike those of MNIST: gradients of CIFAR-10 networks are longer."""
    regularisers = {
        "igr_l2": ("IGR, l2", "igr", "terms.igr.weight", (0.3, 0.1, 0.03, 0.01)),
        "fgr": ("FGR", "fgr", "terms.fgr.weight", (1.47, 0.49, 0.15, 0.05)),
        "igr_l1": ("IGR, l1", "family", "terms.gain.weight", (1.0, 0.5, 0.25, 0.12)),
        "lfr": ("LFR", "lfr", "terms.lfr.weight", (0.03, 0.01, 0.003, 0.001)),
    }
    title = "CIFAR-10, ResNet-20: gradient penalties with smooth activations, at about the same clean accuracy"
    config, steps = "cifar10_reference_methods", ":points.roughest.steps=3:points.roughest.step_size=0.02"
    # Within a point, not half of one: clean accuracy after few epochs varies more than on MNIST.
    rows = {
        size: smooth_rows(config, regularisers, options, model=":model.name=resnet20", within=1.0)
        for size, options in (("short", steps), ("full", ""))
    }
    short = (*FEWER, "epochs=8", *ONE_CYCLE)
    full = ("schedule.learning_rate=0.1",)
    pairs = smooth_pairs(regularisers)
    attacks = {name: CIFAR_ATTACKS[name] for name in ("flow_pgd", "flow_apgd", "additive_2_255", "additive_8_255")}
    worst = {"worst flow": in_ball_of("flow_pgd", attacks)}
    return {
        "short": Table(title, rows["short"], short, attacks, worst, 500, (0,), pairs),
        "full": Table(title, rows["full"], full, attacks, worst, 10_000, (0, 1, 2), pairs),
    }


LFR = dict(perturbation="additive", norm="linf", radius=0.031)
# `short` chooses the checkpoint.
LFR_ATTACKS = {
    "short": dict(kind="pgd", steps=10, **LFR),
    "pgd": dict(kind="pgd", steps=40, restarts=3, early_stop=True, **LFR),
    "apgd": dict(kind="apgd", steps=40, restarts=3, early_stop=True, **LFR),
    "square": dict(kind="square", queries=1000, **LFR),
}


def _local_flatness() -> dict[str, Table]:
    """Does the penalty in train mode let the run fail, and does a smooth activation change that?"""
    title = "CIFAR-10, ResNet-20: local flatness regularisation (Xu et al. 2020), by activation and BatchNorm's mode"
    searched = "points.attacked.radius=0.031:points.attacked.step_size=0.007:points.attacked.steps=10"
    rows = {
        "standard": Row("standard", "cifar10_methods:standard:model.name=resnet20:select_by=clean"),
        "pgd": Row("adversarial training", f"cifar10_methods:pgd:model.name=resnet20:{searched}"),
    }
    rows |= {
        f"{activation}_{mode}": Row(
            f"{name}, penalty in {mode} mode",
            f"cifar10_methods:lfr:model.options.activation={activation}:terms.lfr.batch_norm={mode}",
        )
        for activation, name in (("relu", "ReLU"), ("silu", "SiLU"))
        for mode in ("train", "eval")
    }
    less = ":points.roughest.steps=3:points.roughest.step_size=0.02"
    quick = {name: row._replace(config=row.config + less) if "lfr" in row.config else row for name, row in rows.items()}
    few = (*FEWER, "epochs=6", "schedule.name=one_cycle", "checkpoint_every_steps=50")
    pairs = (("relu_eval", "relu_train"), ("silu_eval", "silu_train"), ("silu_train", "relu_train"))
    pairs += tuple((row, other) for other in ("standard", "pgd") for row in ("relu_train", "silu_train"))
    worst = {"worst": in_ball_of("pgd", LFR_ATTACKS)}
    # The schedule of LFR is that of its config; adversarial training gets the same.
    long = ("epochs=300.0", "schedule.boundaries=(150.0,250.0)")
    return {
        "short": Table(title, quick, few, LFR_ATTACKS, worst, 500, (0,), pairs),
        "full": Table(title, rows, long, LFR_ATTACKS, worst, 10_000, (0,), pairs),
    }


def _svhn() -> dict[str, Table]:
    title = "SVHN, WRN-16-8: local flatness regularisation (Xu et al. 2020)"
    rows = {
        "standard": Row("standard", "svhn_methods:standard"),
        "pgd": Row("adversarial training", "svhn_methods:pgd"),
        "lfr": Row("LFR", "svhn_methods:lfr"),
    }
    pairs, worst = against(rows, "standard"), {"worst": in_ball_of("pgd", LFR_ATTACKS)}
    return {  # two cores are not enough for a network of this size
        "full": Table(title, rows, (), LFR_ATTACKS, worst, 10_000, (0,), pairs),
    }


def _region() -> dict[str, Table]:
    """By the number of examples; ResNet-20 is three times as fast as VGG-11."""
    title = "CIFAR-10, ResNet-20: region adversarial training (Wang et al. 2021), by the number of examples"
    config = "cifar10_reference_methods"
    rows = {"standard": Row("none: standard", f"{config}:standard:model.name=resnet20")}
    for count in (10, 50, 100, 500):
        row = f"{config}:rat:model.name=resnet20:points.region.examples={count}"
        rows[f"rat_{count}"] = Row(f"{count} examples", row)
    ball = dict(perturbation="additive", norm="linf", radius=2 / 255)
    attacks = {
        "fgsm": dict(kind="fgsm", **ball),
        "pgd": dict(kind="pgd", steps=20, restarts=2, early_stop=True, **ball),
        "carlini_wagner": dict(kind="carlini_wagner", perturbation="additive", norm="l2", radius=0.25, steps=50,
                               binary_search_steps=5),
    }  # fmt: skip
    short = (*FEWER, "epochs=8", *ONE_CYCLE)
    pairs = against(rows, "standard")
    one = {"additive 8/255": Universal("additive", 8 / 255)}
    return {
        "short": Table(title, rows, short, attacks, {}, 500, (0,), pairs, one),
        "full": Table(title, rows, ("schedule.learning_rate=0.1",), attacks, {}, 10_000, (0, 1, 2), pairs, one),
    }


def _family() -> dict[str, Table]:
    title = "CIFAR-10, the maxout network: training at x + r (Lyu et al. 2015)"
    rows = {
        "standard": Row(
            "standard",
            "cifar10_methods:standard:model.name=maxout_cifar:optimizer.max_norm=1.9365"
            ":optimizer.weight_decay=0.0:select_limit=1000",
        ),
        "linearised": Row("linearised, p = ∞, σ = 0.05", "cifar10_methods:linearised:select_by=clean"),
    }
    attacks = {
        "fgsm": dict(kind="fgsm", perturbation="additive", norm="linf", radius=8 / 255),
        "pgd": dict(kind="pgd", perturbation="additive", norm="linf", radius=8 / 255, steps=20, early_stop=True),
        **{f"noise_{s}".replace(".", "_"): NOISE | dict(radius=s * 3072**0.5) for s in (0.05, 0.1, 0.2)},
    }
    # The paper's kernels of 0.005 are so small that a short run does not leave chance.
    few = (*FEWER, "epochs=6", "schedule.learning_rate=0.01", "model.options.irange=0.05",
           "checkpoint_every_steps=20")  # fmt: skip
    pairs = against(rows, "standard")
    return {
        "short": Table(title, rows, few, attacks, {}, 500, (0,), pairs),
        # Without BatchNorm; 0.1 is that of the residual networks.
        "full": Table(title, rows, ("schedule.learning_rate=0.01",), attacks, {}, 10_000, (0, 1, 2), pairs),
    }


TABLES: dict[str, dict[str, Table]] = {
    "cifar10_vgg11": _cifar("vgg11", "VGG-11"),
    "cifar10_resnet20": _cifar("resnet20", "ResNet-20"),
    **{f"{dataset}_paper_{row}": _paper(dataset, name, model)
       for dataset, name in (("cifar10", "CIFAR-10"), ("cifar100", "CIFAR-100"))
       for row, model in (("vgg13", "vgg13"), ("resnet20", "resnet20_xia"))},
    "cifar10_smooth": _smooth(),
    "cifar10_lfr": _local_flatness(),
    "cifar10_rat": _region(),
    "cifar10_family": _family(),
    "svhn_lfr": _svhn(),
}  # fmt: skip
