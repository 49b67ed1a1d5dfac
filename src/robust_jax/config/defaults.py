"""Every key of a config with its default, its choices and its range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from robust_jax.data.known import facts
from robust_jax.options import Range

SPLITS = ("test", "validation", "train")
# Plain keys that take one of a few names. Those of optimizers and schedules are in `robust_jax.config.optimizers`.
CHOICES: dict[str, tuple[str, ...]] = {
    "precision": ("float32", "tensorfloat32", "bfloat16", "default"),
    "model.dtype": ("float32", "bfloat16"),
    "data.resize": ("crop", "stretch", "pad"),
    "evaluation.split": SPLITS,
    "evaluation.checkpoint": ("latest", "best"),
}
# Plain keys that take numbers.
RANGES: dict[str, Range] = {
    **dict.fromkeys(
        ("epochs", "batch_size", "eval_every_epochs", "log_every_steps", "keep_checkpoints", "accumulate"),
        Range(above=0),
    ),
    "seed": Range(least=0, most=2**32 - 1),  # what NumPy takes
    **dict.fromkeys(("select_limit", "checkpoint_every_steps", "checkpoint_every_minutes"), Range(least=0)),
    "data.validation": Range(above=0, below=1),  # checkpoints are chosen on the validation split
    **dict.fromkeys(("data.limit", "data.eval_resize", "data.size"), Range(least=0)),
    "data.test": Range(above=0, below=1),
    **dict.fromkeys([f"data.augment.{key}" for key in ("resize", "padding")], Range(least=0, most=10_000)),  # pixels
    **dict.fromkeys(("data.augment.mixup", "data.augment.cutmix"), Range(least=0)),
    "model.mean": Range(least=0, most=1, tuples=True),  # of images in [0, 1]
    "model.std": Range(above=0, most=1, tuples=True),
    "optimizer.ema": Range(least=0, below=1),
    **dict.fromkeys(
        [f"optimizer.{key}" for key in ("weight_decay", "clip_norm", "max_norm", "adversarial_weights")], Range(least=0)
    ),
    **dict.fromkeys(("schedule.learning_rate", "schedule.warmup_epochs"), Range(least=0)),
    "schedule.boundaries": Range(least=0, tuples=True),
    "schedule.factor": Range(above=0),
    "optimizer.momentum": Range(least=0, below=1),
    "evaluation.batch_size": Range(above=0),
    **dict.fromkeys([f"evaluation.{key}" for key in ("limit", "checks", "pictures", "surfaces")], Range(least=0)),
}


def nominal_shape(config: Mapping[str, Any]) -> tuple[tuple[int, int, int], int]:
    """The images' (H, W, C) and the number of classes, as far as they are known before the data is read.

    For a dataset that is not well known: (32, 32, C), with C the number of means of the model if there are several, 3
    otherwise, and 1,000 classes, so that no class of a config is too large.
    """
    channels = np.size(config["model"]["mean"])
    known = facts(config["data"]["name"])
    return (known.image_shape, known.num_classes) if known else ((32, 32, channels if channels > 1 else 3), 1000)


def base(dataset: str = "digits", model: str = "digits_cnn") -> ConfigDict:
    """Every key with its default; an experiment adds terms, points and attacks, and changes the keys that differ.

    It is one long table, so that all keys can be read in one place.
    """
    known = facts(dataset)
    mean, std = (known.mean, known.std) if known else ((0.0,), (1.0,))
    return ConfigDict(
        {
            "seed": 0,
            "epochs": 10.0,
            "batch_size": 128,  # of an update, over all devices of all hosts
            "accumulate": 1,  # micro-batches per update and device: less memory, the same update
            # Of matrix products: float32, or the faster tensorfloat32, bfloat16, default (the device's own choice).
            "precision": "float32",
            "data": {
                "name": dataset,
                "data_dir": "",  # of prepared TFDS datasets; "": $TFDS_DATA_DIR or ~/tensorflow_datasets
                "validation": 0.1,  # the fraction of the training split on which checkpoints are chosen
                "limit": 0,  # the number of training images used; 0: all
                # Of images of one's own: their height and width, 0 if all have one size; how they get it, "crop",
                # "stretch" or "pad"; and the fraction set aside to test on if there is no test split.
                "size": 0,
                "resize": "crop",
                "test": 0.2,
                "fingerprint": "",  # of images of one's own, filled in when training begins: other images are refused
                # mixup, cutmix: α of the Beta distribution of the share of an image and its label; 0: none.
                "augment": {"resize": 0, "padding": 0, "flip": False, "mixup": 0.0, "cutmix": 0.0},
                "eval_resize": 0,  # resize and centre-crop of validation and test images
            },
            "model": {
                "name": model,
                "mean": mean,  # mean, std: normalisation inside the model
                "std": std,
                "dtype": "float32",  # of its computations, or bfloat16
                "options": {},
                "first_weights": "",  # of a model object that holds weights, filled in when training begins
            },
            "sync_batch_norm": False,  # batch statistics over all devices instead of each device's own
            "optimizer": {
                "name": "sgd",  # any of optax that takes a learning rate, or "module:name"
                "momentum": 0.9,
                "nesterov": False,
                "weight_decay": 0.0,
                "decay_batch_norm": True,
                "clip_norm": 0.0,
                "max_norm": 0.0,  # the largest norm of a unit's incoming weights; 0: no bound
                # The gradient is taken after a step uphill by this fraction of each layer's norm (AWP); 0: no step.
                "adversarial_weights": 0.0,
                # Further arguments of the optimiser, such as dict(b2=0.95) of adamw.
                "options": {},
                "ema": 0.0,  # decay of an average of weights and BatchNorm statistics, used to evaluate; 0: none
            },
            "schedule": {
                "name": "constant",
                "learning_rate": 0.01,
                "boundaries": (),  # epochs
                "factor": 0.1,
                "warmup_epochs": 0.0,
            },
            "points": {},
            "terms": {},
            "select_by": "clean",  # validation accuracy that chooses the best checkpoint: clean, or a name in attacks
            "select_limit": 0,  # validation images for that; 0: all
            "eval_every_epochs": 1.0,
            "checkpoint_every_steps": 0,  # besides those after each validation; 0: none
            "checkpoint_every_minutes": 10.0,  # and at least this often; 0: no limit
            "keep_checkpoints": 2,  # the number of latest ones kept, in case the newest is damaged
            "log_every_steps": 50,
            # Where metrics go besides metrics.jsonl: "tensorboard", "wandb", "module:name" of your own.
            "writers": ("tensorboard",),
            "attacks": {},
            "evaluation": {
                "split": "test",
                "limit": 0,  # the number of examples, the first ones of the split; 0: all
                "batch_size": 250,  # halved if memory runs out
                "checkpoint": "best",
                # Each attack is given only the examples that no attack before it has broken: the same worst case in
                # less time, and no curves.
                "worst_case_only": False,
                "checks": 64,  # the number of images examined for signs of masked gradients; 0: none
                "signs": (),  # further signs of masked gradients, each "module:name"
                "pictures": 10,  # the number of examples drawn per attack, at most 10
                "surfaces": 0,  # the number of examples per attack around which the loss is drawn, at most 10
            },
        },
        convert_dict=True,
    )
