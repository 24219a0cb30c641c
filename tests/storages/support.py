"""Parts for the tests of storages."""

import threading


def together(work, each):
    """Call ``work(one)`` for each one in a thread of its own; returns what they raised."""
    errors = []

    def run(one):
        try:
            work(one)
        except BaseException as error:  # noqa: BLE001 - told by the test
            errors.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in each]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors
