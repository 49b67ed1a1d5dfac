"""``python eval.py ...`` is ``robust-jax evaluate ...``."""

import sys

from robust_jax.commands import run

if __name__ == "__main__":
    run("evaluate", sys.argv[1:], "eval.py")
