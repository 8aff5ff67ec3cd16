"""Importing this module does all that workers would else do first: the server imports it before it forks any.

So no certifier is charged for it. A network is read once, as torch then imports a thousand modules. No gradient is
computed, and all is done in one thread, because threads do not survive a fork.
"""

import torch
from torch import nn

from certbench.core.classifier import Classifier
from certbench.networks.reading import read
from certbench.runs.executors import worker

_threads = torch.get_num_threads()
torch.set_num_threads(1)
with torch.no_grad(), torch.random.fork_rng(devices=[]):
    read(Classifier(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).eval(), (2,), 2))
torch.set_num_threads(_threads)

main = worker.main
"""What a worker does."""
