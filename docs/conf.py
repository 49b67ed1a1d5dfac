"""The documentation site: `make docs` builds it into build/docs and runs the notebooks on the way.

Nothing is fetched while it is built, and its pages load nothing from elsewhere: equations are MathML, made by docutils.
"""

from __future__ import annotations

import os
import re
from importlib import metadata, util
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.environment import BuildEnvironment

project = "robust_jax"
author = "The robust_jax authors"
copyright = author
release = metadata.version("robust_jax")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["results/*"]
templates_path = ["_templates"]

# Pages. Their links are plain Markdown, so that they also work where the files are read on their own.
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
copybutton_exclude = ".linenos, .gp, .go"

# Notebooks run at every build, since their results depend on the package. PyTorch is 3 GB: where it is not installed,
# the one that needs it shows its code alone.
nb_execution_mode = "force"
# Compiling is most of their time, and half as long without these emitters. XLA aborts at flags that it does not know.
if metadata.version("jax").startswith("0.10."):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"
nb_execution_in_temp = True  # they write files
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_excludepatterns = [] if util.find_spec("torch") else ["notebooks/*pytorch*"]
nb_merge_streams = True
nb_output_stderr = "remove"  # bars, which stand for nothing on a page

# The reference. Types are in the docstrings, by shape and meaning; those of signatures are for type checkers.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autosummary_generate = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
nitpicky = True
default_role = "py:obj"
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "robust_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
html_copy_source = True  # a notebook can be downloaded from its page
html_sourcelink_suffix = ""
html_show_sphinx = False


def _repository() -> str:
    """The address of the sources, once setup.cfg has one: ``project_urls = Source = https://github.com/...``."""
    urls = (url.split(", ", 1) for url in metadata.metadata("robust_jax").get_all("Project-URL") or [])
    return dict(urls).get("Source", "")


html_context = {"repository": _repository()}


def of_public_name(app: Sphinx, env: BuildEnvironment, node: Any, content: nodes.Node) -> nodes.Node | None:
    """What a name in backticks of a docstring means: the public object of that name, or else just code.

    References with a role of their own are left to Sphinx, which warns of those that lead nowhere.
    """
    if node.get("reftype") != "obj" or node.get("refdomain") != "py":
        return None
    target = node["reftarget"].removesuffix("()").replace("rj.", "robust_jax.", 1)
    domain = env.get_domain("py")
    assert isinstance(domain, PythonDomain)
    found = [
        name
        for name, entry in domain.objects.items()
        if (name == target or name.endswith("." + target)) and not entry.aliased
    ]
    if not target or len(found) != 1:
        return content
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, content)


def as_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Leads links to files beside this folder, which are meant for those who read the files, to their pages.

    A number and its deviation stay in one line.
    """
    source[0] = re.sub(r"(\d) ± (\d)", "\\1\u00a0±\u00a0\\2", source[0])
    for name in ("CONTRIBUTING", "CHANGELOG"):
        source[0] = source[0].replace(f"](../{name}.md", f"]({name.lower()}.md")


def math_block(translator: Any, node: nodes.math_block) -> None:
    """A displayed equation."""
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def math_inline(translator: Any, node: nodes.math) -> None:
    """An equation in a line."""
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("missing-reference", of_public_name)
    app.connect("source-read", as_page)
    app.add_html_math_renderer("mathml", (math_inline, None), (math_block, None))


html_math_renderer = "mathml"
