"""How texts of a command line are read."""

import argparse
import sys

import pytest

from zodbjobs.cli.arguments import add_path, age, import_paths, positive, seconds, size
from zodbjobs.cli.output import CommandError


@pytest.mark.parametrize('text', ['0', '-1', 'x', '1.5'])
def test_positive(text):
    with pytest.raises(ValueError):
        positive(text)
    assert positive('3') == 3


@pytest.mark.parametrize('text', ['-1', 'x', 'nan', 'inf'])
def test_seconds(text):
    with pytest.raises(ValueError):
        seconds(text)
    assert seconds('0.5') == 0.5


@pytest.mark.parametrize(
    'text, found', [('500', 500), ('500k', 5e5), ('500M', 5e8), ('1.5G', 1.5e9), ('500MB', 5e8)]
)
def test_sizes(text, found):
    assert size(text) == found


@pytest.mark.parametrize('text, found', [('9', 9), ('90s', 90), ('30m', 1800), ('1d', 86400)])
def test_ages(text, found):
    assert age(text) == found


@pytest.mark.parametrize('text', ['', 'M', '-1', '0', 'nan', 'inf', '5x'])
def test_what_is_no_size_and_no_age(text):
    for reading in (size, age):
        with pytest.raises(ValueError):
            reading(text)


# Where jobs are imported from --------------------------------------------------------------


def obey(*words):
    """Read these words, and import what they say."""
    parser = argparse.ArgumentParser()
    add_path(parser)
    import_paths(parser.parse_args(words))


def test_folders_go_to_the_front_of_the_path(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'path', list(sys.path))
    before = list(sys.path)
    obey()
    assert sys.path == before
    obey('--path', str(tmp_path), '--path', str(tmp_path.parent))
    assert sys.path[:2] == [str(tmp_path.parent), str(tmp_path)]


def test_a_module_is_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'imported_for_a_test.py').write_text('')
    obey('--path', 'imported_for_a_test')
    assert 'imported_for_a_test' in sys.modules
    del sys.modules['imported_for_a_test']


def test_what_is_neither_is_told():
    with pytest.raises(CommandError, match='--path nowhere_at_all: no folder, and no module') as it:
        obey('--path', 'nowhere_at_all')
    assert it.value.code == 2
