"""Configs that come with the package: ``--config=NAME``, or ``--config=NAME:ARGUMENT`` for files of several.

A config of your own is a file with ``get_config()``, which may start from one of these:
``from robust_jax.configs.mnist_fgr import get_config as mnist_fgr``.
"""
