"""Helpers of the lecture *Large language models, run*.

Importing this package costs nothing: each module imports what it needs when it is used. Its floors, and
what stands on which, are in CONTRIBUTING.md: a module knows nothing of a floor above its own.
"""

import os

__version__ = "0.1.0"

# torch's threads wait for each other in a loop that keeps their core busy, for up to 300,000 turns. Where
# another program of that kind wants one of two cores, a small training step then takes 0.9 to 2.9 seconds
# instead of 25 milliseconds. Asleep after 2,000 turns they take 0.1 to 0.2, and alone as little as before
# (asleep at once, OMP_WAIT_POLICY=PASSIVE, is best in company, and alone costs half as much again). GNU's
# OpenMP, which is Linux's, reads this when torch is loaded; who has set either keeps it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
