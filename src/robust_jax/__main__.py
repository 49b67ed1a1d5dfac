"""``python -m robust_jax COMMAND ...``, the same as ``robust-jax COMMAND ...``."""

from robust_jax.commands import main

if __name__ == "__main__":
    main()
