"""Networks for global Lipschitz constants."""

import math

from torch import nn

from certbench import Classifier, ThreatModel
from certbench.verifiers.lipschitz.margin import LayerwiseLipschitz

P = (1.0, 2.0, math.inf)


def prepare(classifier, p):
    return LayerwiseLipschitz().prepare(classifier, ThreatModel(p))


def wrap(*layers, shape=(6,)):
    return Classifier(nn.Sequential(*layers).eval(), shape, 4, "test")


def table(classifier, p, rule):
    return LayerwiseLipschitz(rule=rule).prepare(classifier, ThreatModel(p)).constants
