"""Making a failing run short: leave out steps while it still fails in the same way.

Chunks of steps are left out, large ones first, then smaller ones, down to
single steps.  What a step does depends on its own number, so the others stay
what they were; that a shorter run fails for another reason is told by the name
of the invariant.

Runs in the director's thread.
"""

#: Runs that may be made to shorten one.
MOST_RUNS = 200


def shortest(fails, numbers, most_runs=MOST_RUNS):
    """The shortest list of steps found for which `fails(numbers)` is true.

    `numbers` is a list for which it is.  At most `most_runs` calls are made.
    """
    numbers, runs, size = list(numbers), 0, max(1, len(numbers) // 2)
    while numbers:
        start, shorter = 0, False
        while start < len(numbers):
            if runs >= most_runs:
                return numbers
            rest = numbers[:start] + numbers[start + size :]
            runs += 1
            if fails(rest):
                numbers, shorter = rest, True
            else:
                start += size
        if size > 1:
            size = max(1, size // 2)
        elif not shorter:
            break
    return numbers


def as_ranges(numbers):
    """[0, 1, 2, 7] as '0-2,7'."""
    runs = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ','.join(str(a) if a == b else f'{a}-{b}' for a, b in runs)


def from_ranges(text):
    """'0-2,7' as [0, 1, 2, 7].  ValueError for what is no such text."""
    numbers = []
    for part in filter(None, text.split(',')):
        first, _, last = part.partition('-')
        numbers += range(int(first), int(last or first) + 1)
    return numbers
