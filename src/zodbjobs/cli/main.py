"""The command ``zodbjobs``: finds the command that was asked for and runs it.

A command is a module with ``add_arguments(parser)``, which also describes it,
and ``main(args)``, which does the work and returns the exit code.  The module
is imported only when it is asked for, so help is quick, and nothing here
imports a reactor.

Exit codes: 0 done, 1 something did not work, 2 the command line or the database
it names is wrong, 130 interrupted.
"""

import argparse
import importlib
import os
import sys

from zodbjobs.cli.output import INTERRUPTED, WRONGLY_ASKED, CommandError, say

#: command -> (its module, or 'module:object', what it is for, in a line)
COMMANDS = {
    'adopt': ('zodbjobs.cli.adopt', 'let a database, such as a copy, belong to a deployment'),
    'agent': ('zodbjobs.cli.act:agent', 'set the size or the channels of agents'),
    'agents': ('zodbjobs.cli.see:agents', 'list the agents'),
    'cancel': ('zodbjobs.cli.act:cancel', 'cancel jobs'),
    'clear': ('zodbjobs.cli.act:clear', 'take all waiting jobs out of a queue'),
    'completion': ('zodbjobs.cli.completion', 'let a shell complete these commands'),
    'count': ('zodbjobs.cli.see:count', 'say how many jobs there are'),
    'demo': ('zodbjobs.cli.demo', 'index a folder of Python sources, as a show of it all'),
    'dispatchers': ('zodbjobs.cli.see:dispatchers', 'list the dispatchers'),
    'doctor': ('zodbjobs.cli.check:doctor', "look for what needs somebody's attention"),
    'feed': ('zodbjobs.cli.feed', 'publish, list, follow and serve feeds'),
    'health': ('zodbjobs.cli.check:health', 'one line and an exit code, for probes'),
    'hold': ('zodbjobs.cli.act:hold', 'set waiting jobs aside'),
    'job': ('zodbjobs.cli.see:job', 'show all that is known about a job'),
    'jobs': ('zodbjobs.cli.see:jobs', 'list jobs'),
    'last': ('zodbjobs.cli.see:last', 'show the job that finished last'),
    'lint': ('zodbjobs.cli.check:lint', 'find waiting jobs that the code here cannot run'),
    'loop': ('zodbjobs.cli.loop', 'look at loops of ids, and bump, add or remove some'),
    'next': ('zodbjobs.cli.see:next_', 'show the job that is claimed next'),
    'pack': ('zodbjobs.cli.act:pack', 'give back the space of old states'),
    'pause': ('zodbjobs.cli.act:pause', 'let a queue hand out nothing'),
    'prune': ('zodbjobs.cli.act:prune', 'forget old finished jobs and dead dispatchers'),
    'put': ('zodbjobs.cli.act:put', 'put a job that calls a function'),
    'queues': ('zodbjobs.cli.see:queues', 'list the queues'),
    'quota': ('zodbjobs.cli.act:quota', 'make a quota, or set its size'),
    'resume': ('zodbjobs.cli.act:resume', 'let held jobs wait for their turn again'),
    'retry': ('zodbjobs.cli.act:retry', 'run failed jobs again'),
    'run': ('zodbjobs.cli.run', 'a worker process for a database, until it is told to stop'),
    'stats': ('zodbjobs.cli.see:stats', 'figures of the jobs that ended lately'),
    'status': ('zodbjobs.cli.see:status', 'how the queues stand and who serves them'),
    'tail': ('zodbjobs.cli.watch:tail', 'tell of jobs as they start and end, or follow one'),
    'threads': ('zodbjobs.cli.watch:threads', 'show what runs here, with live stacks'),
    'top': ('zodbjobs.cli.watch:top', 'show live what runs, waits and ends'),
    'traceback': ('zodbjobs.cli.see:traceback', 'show why a job failed'),
    'unpause': ('zodbjobs.cli.act:unpause', 'let a queue hand out jobs again'),
    'worker': ('zodbjobs.cli.worker', 'run the tasks of a queue one by one'),
    'why': ('zodbjobs.cli.see:why', 'say why a job does not run'),
}

BROKEN_PIPE = 141  # what a shell shows for a program ended by SIGPIPE

EXAMPLES = """\
examples:
  zodbjobs demo                          index the standard library with jobs
  zodbjobs demo search JSONDecoder       ask that index
  zodbjobs run file:///srv/app/Data.fs   work on the jobs of a database
  zodbjobs run zeo://localhost:9991 --path src --threads 8
  zodbjobs run Data.fs -n 4              the same in four processes that share the file
  zodbjobs status zeo://localhost:9991   how its queues stand
  zodbjobs why zeo://localhost:9991 4711 why a job does not run
"""


class PrintVersion(argparse.Action):
    """``--version``; the version is looked up only then."""

    def __init__(self, option_strings, dest, **options):
        super().__init__(option_strings, dest, nargs=0, help='show the version and exit')

    def __call__(self, parser, namespace, values, option_string=None):
        from importlib.metadata import version

        print('zodbjobs', version('zodbjobs'))
        parser.exit()


def main(argv=None):
    """Run the command in `argv` (default: the process's own) and return its exit code.

    Raises SystemExit, as argparse does, for help and for a wrong command line.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        top_parser().print_help(sys.stderr)
        return WRONGLY_ASKED
    asked = top_parser().parse_args(argv)
    module = module_of(asked.command)
    parser = argparse.ArgumentParser(
        prog=f'zodbjobs {asked.command}', formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    args = parser.parse_intermixed_args(asked.arguments)
    try:
        code = module.main(args)
        sys.stdout.flush()
    except BrokenPipeError:
        return after_broken_pipe()
    except KeyboardInterrupt:
        say('interrupted')
        return INTERRUPTED
    except Exception as error:
        code = code_of(error)
        if code is None:
            raise
        say(f'zodbjobs {asked.command}: {error}')
    return code


def module_of(command):
    """What stands for a command: a module, or an object in one, with the two functions."""
    path, _, name = COMMANDS[command][0].partition(':')
    module = importlib.import_module(path)
    return getattr(module, name) if name else module


def top_parser():
    """What stands before the command, and the help that lists the commands."""
    lines = [f'  {name:<13}{purpose}' for name, (_, purpose) in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog='zodbjobs',
        usage='zodbjobs [-h] [--version] COMMAND ...',
        description='Jobs kept in the ZODB. "zodbjobs COMMAND --help" tells about a command.',
        epilog='\n'.join(['commands:', *lines, '', EXAMPLES]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action=PrintVersion)
    parser.add_argument('command', type=known_command, metavar='COMMAND', help=argparse.SUPPRESS)
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def known_command(name):
    if name not in COMMANDS:
        raise argparse.ArgumentTypeError(f'there is no {name!r}; there are {", ".join(COMMANDS)}')
    return name


def code_of(error):
    """The exit code for an `error` that is the world's fault; None for one of ours."""
    if isinstance(error, CommandError):
        return error.code
    from zodbjobs.runtime.address import AddressError  # late: this imports the ZODB

    return WRONGLY_ASKED if isinstance(error, AddressError) else None


def after_broken_pipe():
    """Whoever read our output has gone, as ``head`` does: be silent, also at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


if __name__ == '__main__':
    sys.exit(main())
