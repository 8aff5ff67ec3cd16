"""Certifiers that misbehave, each in one way; workers import this module."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from certbench.core import certification
from certbench.core.certificate import Certificate
from certbench.core.certifier import Certifier
from certbench.core.claims import Guarantee
from certbench.core.classifier import Classifier
from certbench.core.threat import ThreatModel


class Ending(BaseException):
    """No `Exception`."""


def ends() -> None:
    raise Ending("the end")


def endless_in_c() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.PyDLL(None).sleep(10_000)  # holds the lock of the interpreter


def endless() -> None:
    while True:
        pass


def allocates() -> None:
    held: list[Tensor] = []
    while True:
        held.append(torch.empty(1 << 26))  # 256 MB; not written to, so that it is quick on a busy machine


def halves(state: Classifier) -> None:
    with torch.no_grad():
        for parameter in state.module.parameters():
            parameter.data.mul_(0.5)


def hooks(state: Classifier) -> None:
    state.module.register_full_backward_hook(lambda *_: None)


DEEDS: dict[str, Any] = {
    "nothing": lambda state: None,
    "segfault": lambda state: ctypes.string_at(0),
    "abort": lambda state: os.abort(),
    "os._exit": lambda state: os._exit(0),
    "sys.exit": lambda state: sys.exit(0),
    "base": lambda state: ends(),
    "endless": lambda state: endless(),
    "endless in C": lambda state: endless_in_c(),
    "allocates": lambda state: allocates(),
    "halves": halves,
    "hooks": hooks,
    "trains": lambda state: state.module.train(),
    "dtype": lambda state: torch.set_default_dtype(torch.float64),
    "threads": lambda state: torch.set_num_threads(7),
    "gradients": lambda state: torch.set_grad_enabled(False),
    "patches": lambda state: setattr(certification, "input_seed", lambda seed, x: 7),
    "sleeps": lambda state: time.sleep(0.5),
}


@dataclass(frozen=True)
class Misbehaving(Certifier[Classifier]):
    """Does what it should not, in the preparation or for inputs whose first number exceeds `above`.

    `once` is the path of a file; where it is missing, the process makes it, and kills itself. Each input needs some
    `megabytes` for a while.
    """

    deed: str = "nothing"
    preparing: bool = False
    above: float = -9.0
    evidence: str = "object"
    label: int = -7
    radius: float = 1e-9
    once: str = ""
    megabytes: int = 0

    guarantee = Guarantee.SOUND
    norms = frozenset({2.0})

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> Classifier:
        if self.preparing:
            DEEDS[self.deed](classifier)
        return classifier

    def certify(self, state: Classifier, x: Tensor, seeds: Sequence[int]) -> Certificate:
        if self.once and not os.path.exists(self.once):
            open(self.once, "x").close()
            os.kill(os.getpid(), signal.SIGKILL)
        held = torch.ones(len(x), self.megabytes << 18)
        if self.megabytes:
            time.sleep(0.3)
        del held
        if not self.preparing and bool((x[:, 0] > self.above).any()):
            DEEDS[self.deed](state)
        shown: Any = {"object": {"a": 1}, "string": "text", "surrogates": {"reason": "a\ud800b\0"}}[self.evidence]
        label = state(x).argmax(dim=1)
        radius = torch.full((len(x),), self.radius, dtype=torch.float64)
        return Certificate.of(
            label if self.label == -7 else torch.full_like(label, self.label), radius, evidence=[shown] * len(x)
        )
