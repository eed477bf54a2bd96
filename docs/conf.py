"""The documentation site: `make docs` writes it into build/docs. Pages are plain Markdown that GitHub shows as well."""

import os
import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
# Help is laid out for a terminal of this width, whatever the one is in which the site is built.
os.environ["COLUMNS"] = "120"

project = "fedqueue"
author = "the fedqueue authors"
project_copyright = "Apache 2.0"
version = release = installed("fedqueue")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "site_from_code"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["pictures"]

# GitHub's own anchors, so that a link to a heading leads there in both places.
myst_heading_anchors = 4

# Docstrings of the project put names between single backticks.
default_role = "code"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
add_module_names = False
smartquotes = False  # options begin with two hyphens

html_theme = "furo"
html_title = f"fedqueue {release}"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = "$ "
