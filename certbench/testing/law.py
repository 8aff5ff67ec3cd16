"""Laws: each has a name, a statement, questions for each certifier, and a function that raises if it is broken."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from certbench.errors import CertbenchError, MissingBackendError
from certbench.testing.case import Case

Question = tuple[Any, ...]
"""Values that one test of a law is about: a norm, a kind of network, NaN or infinity; () if the law has one test."""


class LawBroken(AssertionError):
    """A certifier breaks a law; the message names law, certifier, network and input."""


class NotConcerned(Exception):
    """A law does not concern a certifier; the message says why."""


@dataclass(frozen=True)
class Law:
    """One law of the contract.

    Attributes:
        name: short name, as in the names of tests: `closed_form`.
        statement: assertion of the law, in plain words.
        questions: questions for each certifier, one test each.
        body: the function that raises `LawBroken` or `NotConcerned`.
    """

    name: str
    statement: str
    questions: tuple[Question, ...]
    body: Callable[..., None]

    def check(self, case: Case, question: Question = ()) -> None:
        """Hold a certifier to this law.

        Args:
            case: the certifier.
            question: one of `questions`.

        Raises:
            LawBroken: the certifier breaks the law.
            NotConcerned: the law does not concern it.
            MissingBackendError: the certifier needs a package that is not installed.
        """
        try:
            self.body(case, *question)
        except LawBroken as broken:
            raise LawBroken(f"{self._about(case, question)}: {broken}\nThe law: {self.statement}") from None
        except MissingBackendError:
            raise
        except CertbenchError as error:
            said = f"{type(error).__name__}: {error}"
            raise LawBroken(f"{self._about(case, question)}: {said}\nThe law: {self.statement}") from error
        except NotConcerned:
            raise
        except Exception as error:
            error.add_note(self._about(case, question))
            raise

    def _about(self, case: Case, question: Question) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in case.spec.items() if key != "name")
        asked = "".join(f", {part}" for part in question)
        return f"law {self.name}, certifier {case.name}" + (f"({options})" if options else "") + asked


LAWS: dict[str, Law] = {}
"""All laws by name, in the order in which they are listed."""


def law(**parameters: tuple[Any, ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a law of a function, whose docstring is its statement.

    Args:
        parameters: values of each argument after the case; every combination is a question.
    """

    def register(body: Callable[..., None]) -> Callable[..., None]:
        statement = " ".join((inspect.getdoc(body) or "").split())
        LAWS[body.__name__] = Law(body.__name__, statement, tuple(product(*parameters.values())), body)
        return body

    return register


def demand(good: bool | Bool[Tensor, " n"], network: str, says: str | Callable[[int], str]) -> None:
    """Demand that something holds for a network, or for every input.

    Args:
        good: whether it holds; a tensor has one entry per input.
        network: name of the network, for the message.
        says: what is wrong: a text, or a function of the input's index.

    Raises:
        LawBroken: it does not hold; the message names the first input that is wrong.
    """
    if isinstance(good, bool):
        if not good:
            raise LawBroken(f"network {network}: {says}")
        return
    wrong = (~good).nonzero().flatten().tolist()
    if wrong:
        text = says(wrong[0]) if callable(says) else says
        raise LawBroken(f"network {network}, input {wrong[0]}: {text} ({len(wrong)} of {len(good)} inputs)")


def named(parameters: Mapping[str, Any] | Question) -> str:
    """Return a question as the identifier of a test shows it."""
    return "-".join(str(part) for part in parameters)
