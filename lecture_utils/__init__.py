"""Helpers of the lecture *Large language models: a course that runs*.

Importing this package costs nothing: each module imports what it needs when it is used. CONTRIBUTING.md
lists its layers. A module imports from its own layer and from those below it, never from above.
"""

import os
import time

__version__ = "0.1.0"

# torch's threads wait for each other in a loop that keeps their core busy, for up to 300,000 turns. That is best where
# they have the machine to themselves. Where another program wants one of two cores, a thread that waits keeps out the one
# that it waits for; then they shall fall asleep after 2,000 turns. A small training step, measured on two cores: alone 140
# to 165 ms, and 185 to 205 with the short wait; in two programs at once 650 ms, and 360 with it (330 where only the second
# has it). GNU's OpenMP, which is Linux's, reads this when torch is loaded. Whoever sets one of the two variables keeps the
# choice; tools/lecture.py sets it for several jobs.
SHORT_WAIT = "2000"


def crowded(samples: list[str], ours: int, cores: int) -> bool:
    """Return whether other programs want the cores that ``ours`` threads need, by all samples of /proc/loadavg."""
    others = min(int(sample.split()[3].split("/")[0]) for sample in samples) - 1  # we run ourselves
    return others + ours > cores


def _look() -> list[str]:
    samples = []
    for _ in range(3):  # within some milliseconds: a program that runs for a moment does not count
        with open("/proc/loadavg", encoding="ascii") as file:
            samples.append(file.read())
        time.sleep(0.004)
    return samples


def _decide() -> None:
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        return
    try:
        threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or len(os.sched_getaffinity(0))
        wanted = crowded(_look(), threads, os.cpu_count())
    except (OSError, AttributeError, ValueError, IndexError):  # not Linux, or another kind of it
        return
    if wanted:
        os.environ["GOMP_SPINCOUNT"] = SHORT_WAIT


_decide()
