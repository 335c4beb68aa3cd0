"""How Sphinx makes the lecture's site. Started by tools/build_site.py (`make site`)."""

import importlib.resources
import re
import sys
from pathlib import Path

import nbformat
from docutils import nodes
from sphinx.transforms import SphinxTransform

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import build_site
import links

slug, branch = links.project()
project = "Large language models: a course that runs"
html_title = project
language = "en"
smartquotes = False  # prose as it was written

extensions = ["myst_nb"]
nb_execution_mode = "off"  # the committed outputs are the lecture's
nb_render_markdown_format = "myst"  # links in outputs lead to pages, as those in cells do
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# MathJax 3 with SVG output is complete in one file; Sphinx's own choice comes from a CDN.
mathjax_path = "tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}}  # the menu could load more
html_static_path = [
    str(importlib.resources.files("mathjax") / "static/mathjax/es5/tex-svg.js"),
    "site.css",
    "site.js",
]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_favicon = "favicon.svg"
html_use_index = False  # the glossary is one page, in order

html_theme = "sphinx_book_theme"
html_theme_options = {
    "repository_url": f"https://github.com/{slug}",
    "repository_branch": branch,
    "path_to_docs": "notebooks",
    "use_repository_button": True,
    "navbar_persistent": [],  # the search field stands in the sidebar
    "launch_buttons": {
        "notebook_interface": "jupyterlab",
        "binderhub_url": "https://mybinder.org",
        "colab_url": "https://colab.research.google.com",
    },
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "footer_content_items": ["extra-footer.html"],
    "extra_footer": "Code: MIT. Text, figures and data: CC BY 4.0.",
}


class Anchors(SphinxTransform):
    """Make the ``<a id="merging"></a>`` that stands before a heading the heading's own id.

    Links between notebooks, the contents and permalinks all use it then.
    """

    default_priority = 600  # other ids are given by 262; MyST resolves links at 879

    def apply(self):
        for mark in list(self.document.findall(nodes.paragraph)):
            anchor = re.fullmatch(r'<a id="([a-z0-9-]+)">\s*</a>', mark.astext())
            section = mark.next_node(nodes.section, siblings=True, ascend=True, descend=False)
            if not anchor or not section:
                continue
            name = anchor.group(1)
            for other in self.document.findall(nodes.section):
                if name in other["ids"]:
                    other["ids"].remove(name)
            section["ids"].insert(0, name)
            self.document.ids[name] = section
            self.document.myst_slugs[name] = (section.line, name, section[0].astext())
            mark.parent.remove(mark)


def as_page(app, docname, content):
    if app.env.doc2path(docname).suffix == ".ipynb":
        content[0] = nbformat.writes(build_site.prepare(nbformat.reads(content[0], as_version=4)))


def setup(app):
    app.add_transform(Anchors)
    app.connect("source-read", as_page)
