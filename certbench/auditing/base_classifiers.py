"""The audit of one base classifier: all attacks on all inputs, then more where certificate and attack are close."""

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from certbench.attacks.battery import INSIDE, attack_with_all, refute
from certbench.attacks.counterexamples import Counterexamples, PerThreat, replay
from certbench.attacks.walk import Bounds
from certbench.auditing.result import UNREACHED, Audit
from certbench.core.claims import ABSTAIN
from certbench.core.classifier import Classifier
from certbench.core.threat import ThreatModel
from certbench.errors import StoreError
from certbench.results.rows import Row
from certbench.results.store import Counterexample, Store
from certbench.runs.reopen import StoredRow, StoredRun

BATCH = 32
ROUNDS = 12
"""Maximum number of rounds where certificate and attack are close; three rounds without any gain end them."""


class BaseAudit:
    """The audit of one base classifier; its findings go into `whole`.

    Attributes:
        closer: number of counterexamples stored because they were closer than the known ones.
    """

    def __init__(
        self, opened: StoredRun, name: str, entries: list[StoredRow], store: Store, steps: int, seed: int, whole: Audit
    ) -> None:
        self.model, self.entries, self.store, self.steps, self.seed = opened.models[name], entries, store, steps, seed
        self.whole, self.closer = whole, 0
        self.indices = sorted({entry.row.input for entry in entries})
        self.at = {index: i for i, index in enumerate(self.indices)}
        self.x = opened.inputs[self.indices]
        self.threats = tuple(dict.fromkeys(entry.threat for entry in entries))
        self.keys = {(entry.threat, self.at[entry.row.input]): entry.attack for entry in entries}
        self.found: PerThreat = {threat: Counterexamples.none(self.x) for threat in self.threats}
        self.reached: set[int] = set()
        self.rounds = 0
        low, high = float(opened.inputs.min()), float(opened.inputs.max())
        span = high - low or 1.0
        # Without a domain a certificate holds for all points, also for those that are no images.
        threat = self.threats[0]
        self.box: Bounds = (low - span, high + span) if threat.domain is None else threat.ends(self.x)

    def know(self, stored: Mapping[str, tuple[str, bytes]], distances: Mapping[str, float]) -> None:
        """Take the run's own counterexamples that replaying confirms; each counts at the distance of its point."""
        for threat in self.threats:
            keys = [self.keys.get((threat, i), "") for i in range(len(self.x))]
            self.found[threat] = _replayed(self.model, self.x, threat, keys, stored)
            for i, key in enumerate(keys):
                if distances.get(key, math.inf) * (1 + 1e-9) < self.found[threat].distance[i]:
                    self.whole.unconfirmed.append((self.model.name, threat.p, self.indices[i]))

    def sweep(self, deadline: float) -> None:
        """Run the whole battery, once for every input that has not had it yet."""
        left = [i for i in range(len(self.x)) if i not in self.reached]
        for start in range(0, len(left), BATCH):
            if time.monotonic() > deadline:
                return
            rows = left[start : start + BATCH]
            known = {threat: found.at(rows) for threat, found in self.found.items()}
            found, failed = attack_with_all(
                *(self.model, self.x[rows], self.threats, self.box),
                steps=self.steps, seed=self.seed, known=known, deadline=deadline,
            )  # fmt: skip
            self.whole.failed.update({f"{name} on {self.model.name}": reason for name, reason in failed.items()})
            self.take(rows, found)
            if time.monotonic() <= deadline:  # otherwise some attacks were left out
                self.reached |= set(rows)

    def claims(self, threat: ThreatModel) -> dict[str, Tensor]:
        """Return the radii that each certifier claims in a norm, by input; 0 if it claims none."""
        found: dict[str, Tensor] = defaultdict(lambda: torch.zeros(len(self.x), dtype=torch.float64))
        span, d = _span(self.box, threat, self.x), self.x[0].numel()
        most = {0.0: float(d), math.inf: span}.get(threat.p) or span * d ** (1 / threat.p)
        for entry in self.entries:
            if entry.threat == threat:
                found[entry.row.certifier][self.at[entry.row.input]] = min(entry.row.radius, most)
        return dict(found)

    def press(self, threat: ThreatModel, deadline: float) -> bool:
        """Make one more attempt where certificate and attack are close, and say whether it found something closer."""
        claims = self.claims(threat)
        highest = torch.stack([*claims.values()]).amax(dim=0)
        upper = self.found[threat].distance
        open_ = [i for i in self.reached if 0 < highest[i] < upper[i]]
        open_.sort(key=lambda i: -float(highest[i] / upper[i]))
        if self.rounds == 0:
            attempts = [(open_, radius) for radius in claims.values()]
        else:
            closest = open_[: max(BATCH, len(open_) // 4)]
            between = (highest * upper).sqrt() if self.rounds % 3 == 0 else 0.99 * upper
            attempts = [(closest, torch.where(between.isfinite(), between, highest))]
            attempts += [(closest, highest)] if self.rounds % 3 == 1 else []
        gain = False
        for candidates, radius in attempts:
            rows = [i for i in candidates if radius[i] > 0]
            for start in range(0, len(rows), BATCH):
                if time.monotonic() > deadline:
                    return gain
                part = rows[start : start + BATCH]
                eps = radius[part] if threat.p == 0 else radius[part] * INSIDE
                known = {other: found.at(part) for other, found in self.found.items()}
                found = refute(
                    self.model, self.x[part], threat, eps, self.box,
                    steps=self.steps, restarts=4 + 2 * self.rounds, seed=self.seed + self.rounds, known=known,
                    deadline=deadline,
                )  # fmt: skip
                gain |= self.take(part, {threat: found})
        return gain

    def take(self, rows: list[int], found: PerThreat) -> bool:
        """Keep and store closer counterexamples, and say whether one is closer by more than a thousandth."""
        gain, new = False, []
        for threat, examples in found.items():
            before = self.found[threat]
            distance, point, names = before.distance.clone(), before.point, list(before.attack)
            for j, i in enumerate(rows):
                there = float(examples.distance[j])
                if there < distance[i] and (threat, i) in self.keys:
                    gain |= there < 0.999 * float(distance[i])
                    distance[i], point[i], names[i] = there, examples.point[j], examples.attack[j]
                    blob = examples.point[j].contiguous().numpy().tobytes()
                    new.append(Counterexample(self.keys[threat, i], there, names[i], blob))
            self.found[threat] = Counterexamples(distance, point, tuple(names))
        self.store.put_attacks(new)
        self.closer += len(new)
        return gain

    def conclude(self, fresh: Mapping[tuple[str, str, float, int], Row]) -> None:
        """Compare claims with the counterexamples that the store now has."""
        own = self.model.double()(self.x).argmax(dim=1)
        for entry in self.entries:
            i = self.at[entry.row.input]
            row = fresh[entry.row.model, entry.row.certifier, entry.row.norm, entry.row.input]
            distance = float(self.found[entry.threat].distance[i])
            if row.upper > distance:
                raise StoreError(
                    f"a counterexample of {row.model}, input {row.input}, was not read back as it was stored"
                )
            if (row.model, row.norm, row.input) in self.whole.unconfirmed:
                row = replace(row, upper=distance)
            self.whole.rows.append(row)
            if i not in self.reached:
                self.whole.skipped.append((row, UNREACHED))
            if row.radius > 0 and row.prediction not in (ABSTAIN, int(own[i])):
                self.whole.misnamed.append(row)
            elif replace(row, upper=distance).unsound:  # only replayed points count
                self.whole.refuted.append(row)
        for found in self.found.values():
            self.whole.credits.update(name for name in found.attack if name)


def _span(box: Bounds, threat: ThreatModel, x: Tensor) -> float:
    """Return the length of the longest side of the box, in the threat's units."""
    low, high = box
    sides = (torch.zeros_like(x[0], dtype=torch.float64) + (high - low)).flatten()
    if threat.scale is not None:
        scale = sides.new_tensor(threat.scale)
        sides = sides[scale > 0] / scale[scale > 0]
    return float(sides.max())


def distances(opened: StoredRun, entries: Iterable[StoredRow], store: Store) -> dict[str, float]:
    """Return the distances of these rows' stored counterexamples, by key; inf for those that replaying refutes."""
    stored, found = store.counterexamples(), dict[str, float]()
    groups: dict[tuple[str, ThreatModel], dict[str, int]] = defaultdict(dict)
    for entry in entries:
        if entry.row.model in opened.models and 0 <= entry.row.input < len(opened.inputs):
            groups[entry.row.model, entry.threat][entry.attack] = entry.row.input
    for (model, threat), inputs in groups.items():
        x = opened.inputs[list(inputs.values())]
        again = _replayed(opened.models[model], x, threat, list(inputs), stored)
        found |= dict(zip(inputs, again.distance.tolist(), strict=True))
    return found


def _replayed(
    model: Classifier, x: Tensor, threat: ThreatModel, keys: Sequence[str], stored: Mapping[str, tuple[str, bytes]]
) -> Counterexamples:
    """Return the points stored under these keys, one for each input, if replaying confirms them."""
    points, names = x.clone(), [""] * len(x)
    for i, key in enumerate(keys):
        attack, point = stored.get(key, ("", b""))
        if len(point) == 8 * x[i].numel():
            points[i] = torch.from_numpy(np.frombuffer(point, dtype=np.float64).copy()).view(x[i].shape)
            names[i] = attack
    far = torch.full((len(x),), math.inf, dtype=torch.float64)
    return replay(model, x, threat, Counterexamples(far, points, tuple(names)))[threat]


def press(audits: list[BaseAudit], deadline: float) -> None:
    """Make attempts where certificate and attack are close, until the deadline or until they find nothing closer."""
    idle = 0
    for number in range(ROUNDS):
        gain = False
        for audit in audits:
            audit.rounds = number
            for threat in audit.threats:
                gain |= audit.press(threat, deadline)
        idle = 0 if gain else idle + 1
        if idle >= 3 or time.monotonic() > deadline:
            break
