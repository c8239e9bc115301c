"""Training of the reference model: corpus, baselines, network, recipe.

The rest of the project never needs this package: it reads the finished checkpoint. Only `model`, `optim`,
`train` and `measure` import torch (extra `train`); the corpus and the baselines run on NumPy alone.
"""

import os

# Torch's threads sleep while they wait for each other. Spinning, they take each other's time where other
# programs run: a step on two busy cores took ten times as long. OpenMP reads this once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
