"""How Sphinx builds these pages: `make docs` puts them into docs/_build/html."""

from importlib.metadata import version as version_of

project = 'zodbjobs'
author = 'zodbjobs contributors'
copyright = author
release = version_of('zodbjobs')
version = '.'.join(release.split('.')[:2])

extensions = ['sphinx.ext.autodoc', 'repoze.sphinx.autointerface']
exclude_patterns = ['_build']

autodoc_member_order = 'bysource'
html_theme = 'furo'
html_title = f'zodbjobs {release}'

# The directive for interfaces extends autodoc as it was up to Sphinx 8; without this their
# methods are left out.
autodoc_use_legacy_class_based = True
