"""Finding the doors of dispatchers' processes, and asking there.

Each door leaves a file beside its socket that says what is behind it.  What a
dead process left is found by its socket, where nobody answers, and removed.

Runs in the thread of whoever asks, and waits for the answer.
"""


def found():
    return []


def of_file(path):
    return None
