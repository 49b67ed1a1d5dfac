"""x"""
from robust_jax.config import base, complete
def get_config():
    c = base("digits", "digits_cnn")
    c.epochs = 20.
    c.schedule.name="one_cycle"; c.schedule.learning_rate=.1
    c.terms.ce = dict(kind="cross_entropy", at="clean", weight=1.0)
    c.attacks.flow = dict(kind="pgd", perturbation="flow", norm="linf", radius=0.155, steps=20, restarts=3, curve=(0,.5,1,1.5,2))
    return complete(c)
