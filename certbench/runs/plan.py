"""The plan of a suite: pairs of model and certifier, attacks, estimates."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from certbench.attacks.clever import VERSION as CLEVER_VERSION
from certbench.core.certifier import Certifier
from certbench.core.claims import Subject
from certbench.core.classifier import Classifier
from certbench.core.options import describe, label, versions
from certbench.core.threat import ThreatModel, written
from certbench.results.store import Planned, PlannedEstimate
from certbench.runs.keys import attack_key, content_key, hashes, row_key
from certbench.runs.load import load
from certbench.runs.suite import Suite
from certbench.runs.threats import with_threats


@dataclass(frozen=True, eq=False)
class Pair:
    """All rows of one (model, norm, certifier)."""

    classifier: Classifier
    certifier: Certifier[Any]
    threat: ThreatModel
    planned: list[Planned]


def plan(suite: Suite) -> int:
    """Load the suite's data and models, and count its (model, norm, certifier) pairs.

    Raises:
        ConfigError: one of them cannot be loaded.
    """
    dataset, models = load(suite)
    with_threats(suite, dataset)
    return len(models) * len(suite.threats) * len(suite.certifiers)


def pairs_of(suite: Suite, models: list[Classifier], inputs: torch.Tensor, labels: torch.Tensor) -> Iterator[Pair]:
    """List the pairs of a suite, in its order, each with its planned rows."""
    digests = hashes(inputs)
    seed = suite.settings.seed
    for model in models:
        fingerprint = model.fingerprint()
        for threat in suite.threats:
            steps = suite.settings.attacks.steps
            attack_keys = [attack_key(fingerprint, h, threat, seed, steps) for h in digests]
            for certifier in suite.certifiers:
                spec, name = describe(certifier), label(certifier, suite.usual)
                keys = [row_key(fingerprint, h, threat, seed, spec, versions(certifier)) for h in digests]
                yield Pair(
                    model,
                    certifier,
                    threat,
                    [
                        Planned(
                            key=key,
                            attack=attack_keys[i],
                            model=model.name,
                            certifier=name,
                            spec=spec,
                            guarantee=certifier.guarantee,
                            subject=certifier.subject,
                            norm=threat.p,
                            domain=threat.domain,
                            scale=threat.scale,
                            input=i,
                            label=int(labels[i]),
                        )
                        for i, key in enumerate(keys)
                    ],
                )


def wanted_attacks(
    models: list[Classifier], inputs: torch.Tensor, pairs: list[Pair]
) -> dict[Classifier, list[tuple[int, dict[ThreatModel, str]]]]:
    """List each model's inputs, with the key of the counterexample in each norm.

    Misclassified ones are among them: a radius around a wrong class is a claim, too.
    """
    wanted: dict[Classifier, list[tuple[int, dict[ThreatModel, str]]]] = {}
    for model in models:
        of_model = [pair for pair in pairs if pair.classifier is model and pair.certifier.subject is Subject.BASE]
        if of_model:
            wanted[model] = [
                (i, {pair.threat: pair.planned[i].attack for pair in of_model}) for i in range(len(inputs))
            ]
    return wanted


def correct(
    wanted: dict[Classifier, list[tuple[int, dict[ThreatModel, str]]]], inputs: torch.Tensor, labels: torch.Tensor
) -> dict[Classifier, list[tuple[int, dict[ThreatModel, str]]]]:
    """Keep each model's correctly classified inputs."""
    kept = {}
    for model, entries in wanted.items():
        right = (model.double()(inputs).argmax(dim=1).cpu() == labels).tolist()
        kept[model] = [(i, keys) for i, keys in entries if right[i]]
    return kept


def wanted_estimates(
    suite: Suite, inputs: torch.Tensor, correct: dict[Classifier, list[tuple[int, dict[ThreatModel, str]]]]
) -> list[tuple[Classifier, ThreatModel, list[PlannedEstimate]]]:
    """List the estimates for each model's correctly classified inputs, in each norm for which the suite wants them."""
    asked = suite.settings.clever
    if asked is None:
        return []
    digests, wanted = hashes(inputs), []
    for model, of_model in correct.items():
        fingerprint = model.fingerprint()
        for threat in suite.threats:
            if threat.p in asked.radius:
                options = {"batches": asked.batches, "samples": asked.samples, "radius": asked.radius[threat.p]}
                method = f"clever({', '.join(f'{name}={value:g}' for name, value in options.items())})"
                part = [
                    PlannedEstimate(
                        key=content_key(
                            classifier=fingerprint, input=digests[i], norm=threat.p,
                            domain=written(threat.domain, threat.scale),
                            seed=suite.settings.seed, clever=options, version=CLEVER_VERSION,
                        ),
                        attack=keys.get(threat, ""), model=model.name, method=method, norm=threat.p,
                        domain=threat.domain, input=i, cap=asked.radius[threat.p], scale=threat.scale,
                    )
                    for i, keys in of_model
                ]  # fmt: skip
                wanted.append((model, threat, part))
    return wanted
