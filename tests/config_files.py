"""Config files of a user, for tests."""

import textwrap

FILE = """
    from robust_jax.config import base, complete

    def get_config():
        c = base()
        c.points.adv = dict(kind="attack", perturbation="additive", radius="8/255")
        c.terms.ce = dict(kind="cross_entropy", at="adv")
        c.terms.fgr = dict(kind="gradient_norm", perturbation="flow", weight=1)
        c.attacks.flow = dict(kind="pgd", perturbation="flow", radius="1/4")
        {line}
        return complete(c)
"""


def written(folder, line="pass", name="mine.py", text=FILE):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(textwrap.dedent(text).format(line=line))
    return str(path)
