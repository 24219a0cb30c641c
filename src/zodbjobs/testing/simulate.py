"""The command of the simulator: run seeds, and show the shortest way to what is broken.

    python -m zodbjobs.testing.simulate --seed 1 --steps 150 --seeds 40

makes 40 runs, of the seeds 1 to 40.  The first run that breaks an invariant is
made shorter by leaving out steps, and shown step by step, with the command that
makes exactly that run again.  The exit code is 1 then.
"""

import argparse
import sys

from zodbjobs import clock
from zodbjobs.testing.simulation.play import Play
from zodbjobs.testing.simulation.shrink import MOST_RUNS, as_ranges, from_ranges, shortest


def parsed(args):
    """The arguments of the command line as a namespace."""
    parser = argparse.ArgumentParser(
        prog='python -m zodbjobs.testing.simulate',
        description='Dispatchers that crash, pause and collide, as a seed decides;'
        ' after each commit the promises are checked.',
    )
    parser.add_argument('--seed', type=int, default=1, help='the first seed (1)')
    parser.add_argument('--seeds', type=int, default=1, help='how many seeds to run (1)')
    parser.add_argument('--steps', type=int, default=150, help='steps of each run (150)')
    parser.add_argument('--storage', choices=('memory', 'file'), default='memory')
    parser.add_argument('--keep', metavar='RANGES', help='make these steps only, as in 0-4,17')
    parser.add_argument('--seconds', type=float, help='begin no further seed after so many seconds')
    parser.add_argument('--shrink', type=int, default=MOST_RUNS, metavar='RUNS',
                        help='runs to spend on a shorter way (%(default)s)')  # fmt: skip
    parser.add_argument('--tell', action='store_true', help='tell each step, of runs that hold too')
    return parser.parse_args(args)


def main(args=None):
    """Run the command with `args` (None: the process's own); returns the exit code."""
    options = parsed(args)
    keep = None if options.keep is None else from_ranges(options.keep)
    machine = clock.SystemTime()
    begun, count, steps, commits = machine.monotonic(), 0, 0, 0
    for seed in range(options.seed, options.seed + options.seeds):
        tell = [] if options.tell else None
        play = Play(seed, options.steps, options.storage, keep, tell)
        violation = play.run()
        if tell:
            print('\n'.join(tell))
        if violation is not None:
            report(options, seed, play, violation)
            return 1
        count, steps, commits = count + 1, steps + len(play.numbers), commits + play.commit_count
        if options.seconds is not None and machine.monotonic() - begun > options.seconds:
            break
    seconds = max(machine.monotonic() - begun, 1e-6)
    print(
        f'{count} seeds, {steps} steps, {commits} commits: every promise was kept'
        f' ({steps / seconds:.0f} steps/s)'
    )
    return 0


def report(options, seed, play, violation):
    """Print the shortest way found to what `play` found."""
    print(f'seed {seed} breaks a promise: {violation}')
    numbers = play.numbers
    if play.step is not None:  # not at the end: what follows had no part in it
        numbers = numbers[: numbers.index(play.step) + 1]

    def fails(keep):
        found = Play(seed, options.steps, options.storage, keep).run()
        return found is not None and found.name == violation.name

    if options.shrink and fails(numbers):
        numbers = shortest(fails, numbers, options.shrink)
    tell = []
    found = Play(seed, options.steps, options.storage, numbers, tell).run()
    print(f'the shortest way found has {len(numbers)} steps:')
    print('\n'.join(tell))
    print(f'and then: {found}')
    storage = '' if options.storage == 'memory' else f' --storage {options.storage}'
    print(
        f'again: python -m zodbjobs.testing.simulate --seed {seed} --steps {options.steps}'
        f'{storage} --shrink 0 --keep {as_ranges(numbers)}'
    )


if __name__ == '__main__':
    sys.exit(main())
