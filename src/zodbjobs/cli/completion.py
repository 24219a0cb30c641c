"""``zodbjobs completion SHELL``: what a shell needs to complete commands and options.

The script asks the command itself for the words, so it is never out of date.
"""

import argparse
import importlib

from zodbjobs.cli.output import describe

_SCRIPTS = {
    'bash': """\
_zodbjobs() {
    local IFS=$'\\n'
    COMPREPLY=($(compgen -o default -W "$(zodbjobs completion words "${COMP_WORDS[1]}")" \\
        -- "${COMP_WORDS[COMP_CWORD]}"))
    [ "$COMP_CWORD" = 1 ] && COMPREPLY=($(compgen -W "$(zodbjobs completion words)" \\
        -- "${COMP_WORDS[1]}"))
}
complete -o default -F _zodbjobs zodbjobs
""",
    'zsh': """\
#compdef zodbjobs
_zodbjobs() {
    if (( CURRENT == 2 )); then
        compadd -- ${(f)"$(zodbjobs completion words)"}
    else
        compadd -- ${(f)"$(zodbjobs completion words $words[2])"}
        _files
    fi
}
compdef _zodbjobs zodbjobs
""",
    'fish': """\
complete -c zodbjobs -n __fish_use_subcommand -f -a '(zodbjobs completion words)'
complete -c zodbjobs -n 'not __fish_use_subcommand' \\
    -a '(zodbjobs completion words (commandline -opc)[2])'
""",
}

#: Commands behind which states may stand.
_WITH_STATES = ('jobs', 'count', 'stats')


def add_arguments(parser):
    """See `zodbjobs.cli.main`."""
    describe(
        parser,
        'Print a script that lets a shell complete the commands and their options.',
        """
        zodbjobs completion bash >> ~/.bashrc
        zodbjobs completion zsh > ~/.zsh/completions/_zodbjobs
        zodbjobs completion fish > ~/.config/fish/completions/zodbjobs.fish
        """,
    )
    parser.add_argument('shell', choices=[*_SCRIPTS, 'words'], help='the shell')
    parser.add_argument('command', nargs='?', help=argparse.SUPPRESS)


def main(args):
    """See `zodbjobs.cli.main`."""
    if args.shell != 'words':
        print(_SCRIPTS[args.shell], end='')
        return 0
    print('\n'.join(words(args.command)))
    return 0


def words(command):
    """What may stand behind `command`; the commands themselves for None or an unknown one."""
    from zodbjobs.cli.main import COMMANDS, module_of

    if command not in COMMANDS:
        return sorted(COMMANDS)
    parser = argparse.ArgumentParser(add_help=True)
    module_of(command).add_arguments(parser)
    options = [word for action in parser._actions for word in action.option_strings]
    if command in _WITH_STATES:
        options += importlib.import_module('zodbjobs.monitor.wanted').STATES
    return sorted(options)
