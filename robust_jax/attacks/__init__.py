"""Attacks: ``attack(logits_fn, images, labels, threat, *, key, ...) -> AttackResult``, pure and not jitted inside."""

from robust_jax.attacks.pgd import AttackResult, fgsm, pgd

ATTACKS = {"pgd": pgd, "fgsm": fgsm}

__all__ = ["ATTACKS", "AttackResult", "fgsm", "pgd"]
