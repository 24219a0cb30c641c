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
