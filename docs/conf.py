"""How Sphinx makes the site of the documentation. `make docs` runs it on a copy of the pages."""

import os

project = "questlm"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
exclude_patterns = ["**/conf.py"]

html_theme = "furo"
html_title = "questlm"
html_show_copyright = False

myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 4  # links such as generate.md#memory-for-weights
nb_execution_mode = os.environ.get("QUESTLM_NOTEBOOK", "force")
nb_execution_raise_on_error = True
nb_execution_timeout = 600

autodoc_typehints = "none"  # the signature has them
autodoc_class_signature = "separated"  # the settings of a run are too many for one line
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "exclude-members": "model_config, model_copy, model_post_init"}
napoleon_use_rtype = False
default_role = "code"  # in docstrings, `name` is code
