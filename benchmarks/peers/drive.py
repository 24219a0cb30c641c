"""``python -m benchmarks.peers.drive NAME VERB COUNT``: puts jobs in the system of that name.

``put`` puts them one by one, as fast as it goes, and prints the seconds it took;
``pulse`` puts them with pauses and prints when the call of each put began.
What is printed is JSON.
"""

import importlib
import json
import sys
import time

#: Long enough for a job to be done and its worker to be idle again.
BETWEEN_SECONDS = 0.03

WARM_UP = 5


def main(name, verb, count):
    module = importlib.import_module(f'benchmarks.peers.with_{name}')
    with module.producer() as put:
        if verb == 'put':
            for _ in range(WARM_UP):
                put()
            started = time.perf_counter()
            for _ in range(count - WARM_UP):
                put()
            print(json.dumps((count - WARM_UP) / (time.perf_counter() - started)))
        else:
            print(json.dumps([_pulse(put) for _ in range(count)]))


def _pulse(put):
    time.sleep(BETWEEN_SECONDS)
    began = time.monotonic_ns()
    put()
    return began


if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
