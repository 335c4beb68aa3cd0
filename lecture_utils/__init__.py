"""Helpers of the course *Large language models: a course that runs*.

Importing the package itself loads neither torch nor transformers, because each module imports what it needs when it is
used. CONTRIBUTING.md lists the layers of the package. A module imports only from its own layer and those below it.
"""

import contextlib
import os
import time

__version__ = "1.0.0"

# torch's threads wait for each other in a loop that keeps their core busy, for up to 300,000 iterations. This is best
# if they have the machine to themselves. If another program needs one of two cores, however, a waiting thread occupies
# the core on which the thread that it waits for could run, so it should go to sleep after 2,000 iterations. We measured
# a small training step on two cores. Alone, it takes 140 to 165 ms, and 185 to 205 ms with the short wait. In two
# programs at once, it takes 650 ms, and 360 ms with the short wait (330 ms if only the second program has it). GNU's
# OpenMP, which torch uses on Linux, reads GOMP_SPINCOUNT when torch is loaded. We change nothing if the user has set
# GOMP_SPINCOUNT or OMP_WAIT_POLICY. tools/lecture.py sets GOMP_SPINCOUNT when it runs several jobs.
SHORT_WAIT = "2000"


def crowded(samples: list[str], ours: int, cores: int) -> bool:
    """Return whether all samples of /proc/loadavg show other programs on cores that our ``ours`` threads need."""
    others = min(int(sample.split()[3].split("/")[0]) for sample in samples) - 1  # without this process
    return others + ours > cores


def _look() -> list[str]:
    samples = []
    for _ in range(3):  # over some milliseconds, so that a program that runs only for a moment does not count
        with open("/proc/loadavg", encoding="ascii") as file:
            samples.append(file.read())
        time.sleep(0.004)
    return samples


def _decide() -> None:
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        return
    with contextlib.suppress(OSError, AttributeError, ValueError, IndexError):  # not Linux, or an unusual /proc/loadavg
        threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or len(os.sched_getaffinity(0))
        if crowded(_look(), threads, os.cpu_count()):
            os.environ["GOMP_SPINCOUNT"] = SHORT_WAIT


_decide()
