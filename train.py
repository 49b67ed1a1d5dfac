"""``python train.py ...`` is ``robust-jax train ...``."""

import sys

from robust_jax.commands import run

if __name__ == "__main__":
    run("train", sys.argv[1:], "train.py")
