"""The command itself: what it finds, what it says when something is wrong."""

import subprocess
import sys

import pytest

from zodbjobs.cli import main as cli
from zodbjobs.cli.output import (
    CommandError,
    LineProgress,
    bytes_text,
    percentile,
    seconds_text,
)


def run(*words, **options):
    return subprocess.run(
        [sys.executable, '-m', 'zodbjobs', *words], capture_output=True, text=True, **options
    )


class Command:
    """Stands for a module of a command; `act(args)` is its `main`."""

    def __init__(self, act):
        self.main = act

    def add_arguments(self, parser):
        parser.add_argument('--flag', action='store_true')
        parser.add_argument('words', nargs='*')


@pytest.fixture
def command(monkeypatch):
    def install(act):
        monkeypatch.setitem(cli.COMMANDS, 'try', ('tests.pretended_command', 'a try'))
        monkeypatch.setitem(sys.modules, 'tests.pretended_command', Command(act))

    return install


def test_help_names_every_command():
    answer = run('--help')
    assert answer.returncode == 0 and answer.stderr == ''
    for name, (_, purpose) in cli.COMMANDS.items():
        assert f'  {name}' in answer.stdout and purpose in answer.stdout


@pytest.mark.parametrize('name', sorted(cli.COMMANDS))
def test_every_command_has_help_with_examples(name):
    answer = run(name, '--help')
    assert answer.returncode == 0 and answer.stderr == ''
    assert answer.stdout.startswith(f'usage: zodbjobs {name}')
    assert f'examples:\n  zodbjobs {name}' in answer.stdout


@pytest.mark.parametrize(
    'words', [['--help'], ['--version'], ['demo', '--help'], ['run', '--help']]
)
def test_help_imports_no_reactor(words):
    code = (
        'import sys\n'
        'from zodbjobs.cli.main import main\n'
        'try: main(sys.argv[1:])\n'
        'except SystemExit: pass\n'
        'print([name for name in sys.modules if name.endswith("reactor")], file=sys.stderr)\n'
    )
    answer = subprocess.run([sys.executable, '-c', code, *words], capture_output=True, text=True)
    assert answer.stderr == '[]\n'


def test_version():
    answer = run('--version')
    assert answer.returncode == 0 and answer.stdout.startswith('zodbjobs 1.')


def test_no_command_shows_the_help():
    answer = run()
    assert answer.returncode == 2 and 'commands:\n' in answer.stderr and answer.stdout == ''


def test_an_unknown_command_is_told_with_those_there_are():
    answer = run('dmeo')
    assert answer.returncode == 2
    assert f"there is no 'dmeo'; there are {', '.join(cli.COMMANDS)}\n" in answer.stderr


def test_exit_code_and_arguments_of_the_command(command):
    seen = []
    command(lambda args: seen.append(args) or 7)
    assert cli.main(['try', 'one', '--flag', 'two']) == 7  # options may stand between
    assert seen[0].words == ['one', 'two'] and seen[0].flag


def failing(error):
    def act(args):
        raise error

    return act


@pytest.mark.parametrize('code', [1, 2])
def test_an_error_is_one_line_on_stderr(command, capsys, code):
    command(failing(CommandError('it is shut', code)))
    assert cli.main(['try']) == code
    assert capsys.readouterr() == ('', 'zodbjobs try: it is shut\n')


def test_an_address_error_is_told_too(command, capsys):
    from zodbjobs.runtime.address import AddressError

    command(failing(AddressError('no server answers there')))
    assert cli.main(['try']) == 2
    assert capsys.readouterr().err == 'zodbjobs try: no server answers there\n'


def test_our_own_mistakes_show_their_traceback(command):
    command(failing(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(['try'])


def test_interrupted(command, capsys):
    command(failing(KeyboardInterrupt()))
    assert cli.main(['try']) == 130
    assert capsys.readouterr().err == 'interrupted\n'


def test_a_reader_that_goes_away_is_no_error():
    code = (
        'import sys, types\n'
        'from zodbjobs.cli import main as cli\n'
        'def act(args):\n'
        '    for n in range(100_000): print("line", n)\n'
        'module = sys.modules["many"] = types.ModuleType("many")\n'
        'module.main, module.add_arguments = act, lambda parser: None\n'
        'cli.COMMANDS["many"] = ("many", "")\n'
        'sys.exit(cli.main(["many"]))\n'
    )
    with subprocess.Popen(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == cli.BROKEN_PIPE
        assert process.stderr.read() == b''


# How it speaks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    'size, text',
    [(0, '0 bytes'), (999, '999 bytes'), (1000, '1.0 kB'), (76_123_456, '76.1 MB')]
    + [(5 * 10**12, '5000.0 GB')],
)
def test_bytes_text(size, text):
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    'seconds, text', [(0.0014, '1.4 ms'), (1, '1.0 s'), (59.94, '59.9 s'), (185, '3 min 5 s')]
)
def test_seconds_text(seconds, text):
    assert seconds_text(seconds) == text


def test_percentile():
    assert percentile([], 0.5) is None
    assert percentile([1], 0.95) == 1
    assert percentile(list(range(100)), 0.5) == 50
    assert percentile(list(range(100)), 0.95) == 95
    assert percentile(list(range(100)), 1) == 99


class Clock:
    """A clock that a test moves."""

    seconds = 0.0

    def monotonic(self):
        return self.seconds


def test_lines_of_progress_come_every_few_seconds(capsys):
    from zodbjobs import clock

    source = Clock()
    clock.use(source)
    with LineProgress('files', 10) as show:
        for done in range(11):
            source.seconds = float(done)
            show.advance(done, 'busy' if done % 2 else '')
    assert capsys.readouterr().err.splitlines() == [
        'files: 3 of 10, busy',
        'files: 6 of 10',
        'files: 9 of 10, busy',
        'files: 10 of 10',
    ]
