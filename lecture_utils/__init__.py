"""Helpers of the lecture *Large language models, run*.

Importing this package costs nothing: each module imports what it needs when it is used.
The floors, lowest first (a module knows nothing of a floor above its own):

0  runtime  models  data             where am I, which weights, which data
1  memory                            pure concepts: arithmetic and torch
2  evaluation  plotting  exercises   what the lecture's stages share
3  finetuning                        the lecture's stages
"""

__version__ = "0.1.0"
