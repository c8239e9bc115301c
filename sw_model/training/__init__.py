"""Training of the reference model: corpus, baselines, network, recipe.

The rest of the project never needs this package: it reads the finished checkpoint. Only `model`, `optim`,
`train` and `measure` import torch (extra `train`); the corpus and the baselines run on NumPy alone.
"""
