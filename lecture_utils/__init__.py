"""Helpers of the lecture *Large language models, run*.

Importing this package costs nothing: each module imports what it needs when it is used. Its floors, and
what stands on which, are in CONTRIBUTING.md: a module knows nothing of a floor above its own.
"""

import os

__version__ = "0.1.0"

# torch's threads wait for each other in a loop that keeps their core busy. Let a browser want one of two
# cores, and a small training step takes ten times as long or more; asleep they wait at hardly any cost.
# OpenMP reads this when torch is loaded; who has set it keeps it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
