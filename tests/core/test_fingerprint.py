"""Fingerprints see what a classifier computes. The file is long because each way of keeping a value has a test."""

import functools
import importlib.util
import os
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import L2, Classifier, ConfigError
from certbench.models import zoo
from certbench.networks.normalise import Normalise
from certbench.verifiers.smoothing.counting import Counter
from certbench.verifiers.smoothing.noise.families import Gaussian


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(9, 3)


class Shift(nn.Module):
    """Shifts its input by a value that it keeps in one of several places."""

    def __init__(self, keep: str, value: float) -> None:
        super().__init__()
        self.layer = linear()
        tensor = torch.tensor(value)
        if keep == "buffer that is not saved":
            self.register_buffer("shift", tensor, persistent=False)
        else:
            self.shift = {"number": value, "tensor": tensor, "list": [tensor], "function": lambda: value}[keep]

    def forward(self, x: Tensor) -> Tensor:
        shift = self.shift[0] if isinstance(self.shift, list) else self.shift
        return self.layer(x - (shift() if callable(shift) else shift))


def fingerprint(module: nn.Module) -> str:
    return Classifier(module.eval(), (9,), 3).fingerprint()


@pytest.mark.parametrize("keep", ["number", "tensor", "list", "function", "buffer that is not saved"])
def test_the_fingerprint_sees_a_value_wherever_it_is_kept(keep: str) -> None:
    assert fingerprint(Shift(keep, 0.0)) == fingerprint(Shift(keep, 0.0))
    assert fingerprint(Shift(keep, 0.0)) != fingerprint(Shift(keep, 1.0))


def caught(value: float) -> nn.Module:
    class Caught(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * value

    torch.manual_seed(0)
    return Caught(9, 3)


def hooked(hook: Callable[..., Tensor] | None) -> nn.Module:
    module = linear()
    if hook is not None:
        module.register_forward_hook(hook)
    return module


def test_the_fingerprint_sees_hooks_closures_and_the_order_of_a_repeated_layer() -> None:
    relu, tanh = nn.ReLU(), nn.Tanh()
    assert fingerprint(hooked(None)) != fingerprint(hooked(lambda module, args, out: -out))
    assert fingerprint(caught(1.0)) != fingerprint(caught(-1.0))
    assert fingerprint(nn.Sequential(relu, tanh, relu, linear())) != fingerprint(
        nn.Sequential(relu, tanh, tanh, linear())
    )


def test_the_fingerprint_forgets_the_name_and_keeps_the_precision() -> None:
    module = linear().eval()
    assert Classifier(module, (9,), 3, "a").fingerprint() == Classifier(module, (9,), 3, "b").fingerprint()
    assert fingerprint(linear()) != fingerprint(linear().double())


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    program = (
        "import torch; from torch import nn; from certbench import Classifier; m = nn.Linear(9, 3)\n"
        "nn.init.ones_(m.weight); nn.init.zeros_(m.bias); m.settings = {'a', 'b', 'c', 'd'}\n"
        "print(Classifier(m.eval(), (9,), 3).fingerprint())"
    )
    command = [sys.executable, "-c", program]
    one, two = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert one == two


class Listed(nn.Module):
    """Keeps a layer where torch does not look."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        layer = nn.Linear(1, 2)
        with torch.no_grad():
            layer.weight.fill_(weight)
        self.parts = [layer]

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[0](x)  # type: ignore[no-any-return]


def made(scale: float) -> nn.Module:
    class Scaled(nn.Module):
        factor = scale

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, -x], dim=1) * self.factor

    return Scaled()


FACTOR = 1.0


class UsesTheModule(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x], dim=1) * FACTOR


def test_what_torch_does_not_register_is_in_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    def print_of(module: nn.Module) -> str:
        return Classifier(module.eval(), (1,), 2).fingerprint()

    torch.manual_seed(0)
    one = print_of(Listed(1.0))
    torch.manual_seed(0)
    assert one != print_of(Listed(-1.0))
    assert print_of(made(1.0)) != print_of(made(-1.0)) and print_of(made(2.0)) == print_of(made(2.0))
    before = print_of(UsesTheModule())
    monkeypatch.setattr(f"{__name__}.FACTOR", -1.0)
    assert print_of(UsesTheModule()) != before


def test_code_without_a_source_is_in_the_fingerprint() -> None:
    prints = []
    for sign in ("", "-"):
        space: dict[str, type[nn.Module]] = {}
        code = f"class Net(nn.Module):\n    def forward(self, x): return torch.cat([{sign}x, x * 0], dim=1)"
        exec(code, {"nn": nn, "torch": torch, "__name__": "typed"}, space)
        prints.append(Classifier(space["Net"]().eval(), (1,), 2).fingerprint())
    assert prints[0] != prints[1]


def test_the_order_of_a_set_in_the_code_does_not_matter() -> None:
    """Python hashes text anew in every process; stored results would never be found again."""
    lines = [
        "import torch; from torch import nn; from certbench import Classifier",
        "space = {'nn': nn, '__name__': 'typed'}",
        'body = \'def forward(self, x): return x * (2 if x.device.type in {"cpu", "a", "b", "c"} else 1)\'',
        "exec('class N(nn.Module):\\n ' + body, space)",
        "print(Classifier(space['N']().eval(), (2,), 2).fingerprint())",
    ]
    prints = {
        subprocess.run(
            [sys.executable, "-c", "\n".join(lines)], env={**os.environ, "PYTHONHASHSEED": seed}, check=True,
            capture_output=True, text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(prints) == 1


WRITTEN = """
import torch
from torch import nn

SCALE = 2.0

class Base(nn.Module):
    def shift(self, x): return x - 0.5

class Net(Base):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.act = lambda x: x.relu()
    def forward(self, x):
        if x.dim() not in {1, 2, 3}: raise ValueError(f"{x.dim():d} axes")
        return SCALE * self.act(self.layer(self.shift(x)))
"""

REFORMATTED = '''"""A network, moved and tidied."""

# Comments do not count.
import torch
from torch import nn

SCALE = 2.0  # nor here


class Base(nn.Module):
    """Shifts."""

    def shift(self, x):
        """Move it."""
        return (
            x
            - 0.5
        )


class Net(Base):
    """Docstrings do not count
either."""

    def __init__(self):
        super().__init__()

        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.act = lambda x: (
            x.relu()
        )

    def forward(self, x):
        # What it does:
        if x.dim() not in {1, 2, 3}:
            raise ValueError(f'{x.dim():d} axes')
        return SCALE * self.act(
            self.layer(self.shift(x)),
        )
'''


def print_of_file(path: Path, text: str) -> str:
    """The fingerprint of the class Net in a file with this text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
        return Classifier(module.Net().eval(), (4,), 3).fingerprint()
    finally:
        del sys.modules[path.stem]


def test_neither_the_file_nor_its_formatting_is_in_the_fingerprint(tmp_path: Path) -> None:
    before = print_of_file(tmp_path / "mine.py", WRITTEN)
    assert print_of_file(tmp_path / "elsewhere" / "tidied.py", REFORMATTED) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x - 0.5", "x + 0.5"),
        ("x - 0.5", "0.5 - x"),
        ("x - 0.5", "x - 0.25"),
        ("SCALE = 2.0", "SCALE = -2.0"),
        ("x.relu()", "x.tanh()"),
        ("manual_seed(0)", "manual_seed(1)"),
        ("{1, 2, 3}", "{1, 2}"),
        ("class Base(nn.Module)", "class Base(nn.Flatten)"),
        ("return SCALE * self.act(self.layer(self.shift(x)))", "return SCALE * self.act(self.shift(self.layer(x)))"),
    ],
)
def test_what_a_file_computes_is_in_the_fingerprint(old: str, new: str, tmp_path: Path) -> None:
    assert old in WRITTEN
    before = print_of_file(tmp_path / "mine.py", WRITTEN)
    assert print_of_file(tmp_path / "other.py", WRITTEN.replace(old, new)) != before


FORWARD = """
import collections, functools, math, types
import torch
from torch import nn

{0}

class Net(nn.Module):
    {1}
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        {2}
    def forward(self, x):
        return {3}
"""

PAIRS = {
    "imported function": ("from torch.nn.functional import {} as act", "", "", "act(self.layer(x))", "relu", "silu"),
    "imported module": (
        "import {} as M",
        "",
        "",
        "abs(M.sqrt(2)) * isinstance(M.sqrt(4), complex) * self.layer(x)",
        "math",
        "cmath",
    ),
    "imported class": ("Act = nn.{}", "", "", "Act()(self.layer(x))", "ReLU", "SiLU"),
    "built-in function": (
        "from {} import sqrt",
        "",
        "",
        "abs(sqrt(2)) * isinstance(sqrt(4), complex) * self.layer(x)",
        "math",
        "cmath",
    ),
    "function under another's name": (
        "import torch.nn.functional as F\n@functools.wraps(F.relu)\ndef act(x): return {} * x",
        "",
        "",
        "act(self.layer(x))",
        "2.0",
        "3.0",
    ),
    "class without a module": (
        "space = dict()\nexec('class K:\\n def f(self): return {}', space)\nK = space['K']",
        "",
        "",
        "K().f() * self.layer(x)",
        "2.0",
        "3.0",
    ),
    "named tuple": (
        "C = collections.namedtuple('C', '{}')",
        "",
        "self.c = C(1.0, 2.0)",
        "self.c.a * self.layer(x)",
        "a b",
        "b a",
    ),
    "dictionary with code": (
        "class D(dict):\n    def __getattr__(self, k): return {} * self[k]",
        "",
        "self.c = D(a=1.0)",
        "self.c.a * self.layer(x)",
        "2.0",
        "3.0",
    ),
    "default of a dictionary": (
        "",
        "",
        "self.c = collections.defaultdict(lambda: {})",
        "self.c['x'] * self.layer(x)",
        "2.0",
        "3.0",
    ),
    "kind of container": (
        "",
        "",
        "self.c = {}",
        "(2.0 if type(self.c) is dict else 1.0) * self.layer(x)",
        "{0: 1.0}",
        "[(0, 1.0)]",
    ),
    "dunder attribute": ("K = {}", "__gain__ = K", "", "self.__gain__ * self.layer(x)", "2.0", "3.0"),
    "metaclass": (
        "class M(type):\n    def __len__(cls): return {}\nclass B(metaclass=M): pass",
        "",
        "",
        "len(B) * self.layer(x)",
        "2",
        "3",
    ),
    "patched attributes": (
        "def one(s): return 1.0\ndef two(s): return 2.0",
        "f, g = {}",
        "",
        "self.f() * self.layer(x)",
        "one, two",
        "two, one",
    ),
    "kind of method": (
        "def h(*a): return float(len(a))",
        "f = {}(h)",
        "",
        "self.f(1) * self.layer(x)",
        "staticmethod",
        "classmethod",
    ),
    "setter of a property": (
        "K = {}",
        "p = property(lambda s: s._p, lambda s, v: s.__dict__.update(_p=K * v))",
        "",
        "(setattr(self, 'p', 1.0), self.p)[1] * self.layer(x)",
        "2.0",
        "3.0",
    ),
    "slot": ("", "__slots__ = ('gain',)", "self.gain = {}", "self.gain * self.layer(x)", "2.0", "3.0"),
    "attribute of a tensor": (
        "",
        "",
        "self.layer.weight.gain = {}",
        "self.layer.weight.gain * self.layer(x)",
        "2.0",
        "3.0",
    ),
    "attribute of a module": (
        "own = types.ModuleType('own')\nexec('def __getattr__(n): return {}', vars(own))",
        "",
        "",
        "own.gain * self.layer(x)",
        "2.0",
        "3.0",
    ),
    "parameter that is None": (
        "",
        "",
        "{}",
        "(2.0 if hasattr(self, 'k') else 1.0) * self.layer(x)",
        "self.register_parameter('k', None)",
        "pass",
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_lies_around_the_code_is_in_the_fingerprint(name: str, tmp_path: Path) -> None:
    *places, one, two = PAIRS[name]
    text = FORWARD.format(*places)
    assert "{}" in text
    prints = [
        print_of_file(tmp_path / f"{i}" / "mine.py", text.replace("{}", change)) for i, change in enumerate((one, two))
    ]
    assert prints[0] != prints[1]
    assert print_of_file(tmp_path / "again.py", text.replace("{}", one)) == prints[0]


def test_a_file_with_the_name_of_a_standard_module_is_read(tmp_path: Path) -> None:
    """A script's own folder comes first."""
    prints = set()
    for gain in ("2.0", "3.0"):
        (tmp_path / "profile.py").write_text(f"def gain(): return {gain}\n", encoding="utf-8")
        (tmp_path / "mine.py").write_text(
            "import torch\nfrom torch import nn\nfrom profile import gain\nfrom certbench import Classifier\n"
            "class Net(nn.Module):\n    def forward(self, x): return torch.cat([x, -x], dim=1) * gain()\n"
            "print(Classifier(Net().eval(), (1,), 2).fingerprint())\n",
            encoding="utf-8",
        )
        done = subprocess.run(
            [sys.executable, "-B", str(tmp_path / "mine.py")], capture_output=True, text=True, check=True
        )
        prints.add(done.stdout)
    assert len(prints) == 2


def test_a_module_that_is_handed_on_is_refused(tmp_path: Path) -> None:
    text = "import types\nown = types.ModuleType('own')\nown.gain = 2.0\ndef pick(m): return m.gain\n"
    with pytest.raises(ConfigError, match="hands on the module own"):
        print_of_file(tmp_path / "mine.py", FORWARD.format(text, "", "", "pick(own) * self.layer(x)"))


def test_hooks_have_no_numbers_of_the_process() -> None:
    def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return 2 * out

    one = fingerprint(hooked(hook))
    hooked(hook), hooked(hook)
    assert fingerprint(hooked(hook)) == one


def test_a_sign_that_torch_keeps_as_a_note_is_in_the_fingerprint() -> None:
    """The imaginary part of a conjugate has the same bytes, and a mark that says that they are negated."""
    imaginary = torch.tensor([1.0 + 2.0j]).conj().imag
    assert imaginary.is_neg()
    prints = []
    for kept in (imaginary, -imaginary, imaginary.clone()):
        module = linear()
        module.kept = kept
        prints.append(fingerprint(module))
    assert prints[0] == prints[2] != prints[1]


def test_the_notes_of_torch_compile_are_not_in_the_fingerprint() -> None:
    """It leaves them on the parameters of what it has compiled."""
    module = linear()
    module.weight._dynamo_static_input_type = "unguarded"  # type: ignore[attr-defined]
    assert fingerprint(module) == fingerprint(linear())


@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_normed_weights_have_a_fingerprint_that_stays(wrap: Callable[[nn.Module], nn.Module]) -> None:
    assert fingerprint(wrap(linear())) == fingerprint(wrap(linear())) != fingerprint(linear())


ALIAS = """
import torch
from torch import nn

Base = nn.{kind}

class Alias(Base):
    pass

def Net():
    torch.manual_seed(0)
    return nn.Sequential(Alias(), nn.Linear(4, 3))
"""


def test_a_base_class_under_an_alias_is_in_the_fingerprint(tmp_path: Path) -> None:
    one, two = (print_of_file(tmp_path / f"{kind}.py", ALIAS.format(kind=kind)) for kind in ("ReLU", "Tanh"))
    assert one != two


def test_a_file_that_was_edited_after_its_import_does_not_stand_for_the_code_that_runs(tmp_path: Path) -> None:
    """In a notebook the old code goes on running."""
    path = tmp_path / "edited.py"
    new = print_of_file(path, WRITTEN.replace("x - 0.5", "x + 0.5"))
    path.write_text(WRITTEN, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("edited", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["edited"] = module
    try:
        spec.loader.exec_module(module)
        path.write_text(WRITTEN.replace("x - 0.5", "x + 0.5"), encoding="utf-8")
        assert Classifier(module.Net().eval(), (4,), 3).fingerprint() != new
    finally:
        del sys.modules["edited"]


def half(sign: float) -> nn.Linear:
    layer = nn.Linear(1, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[sign], [-sign]]))
        layer.bias.zero_()
    return layer


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Multiply:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        return self.factor * x

    def __get__(self, instance: object, owner: object) -> "Multiply":
        return self


class Negate(Multiply):
    def __call__(self, x: Tensor) -> Tensor:
        return -super().__call__(x)


class Through(nn.Module):
    """Applies what it keeps in a plain attribute, and a linear layer."""

    def __init__(self, kept: Any, linear: bool = True) -> None:
        super().__init__()
        self.kept = [kept]
        self.layer = half(1.0) if linear else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.kept[0](x))  # type: ignore[no-any-return]


def times(factor: float, x: Tensor) -> Tensor:
    return factor * x


def twice(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    @functools.wraps(function)
    def decorated(x: Tensor) -> Tensor:
        return 2 * function(x)

    return decorated


def negated(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    @functools.wraps(function)
    def decorated(x: Tensor) -> Tensor:
        return -function(x)

    return decorated


def same(x: Tensor) -> Tensor:
    return x


def by_attribute(factor: float) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        return function.factor * x  # type: ignore[attr-defined, no-any-return]

    function.factor = factor  # type: ignore[attr-defined]
    return function


def made_of(attribute: Any) -> nn.Module:
    class Kind(nn.Module):
        kept = attribute

        def forward(self, x: Tensor) -> Tensor:
            return self.kept * torch.cat([x, -x], dim=1)

    return Kind()


def in_a_loop(factor: float) -> nn.Module:
    keeps = Through(same)
    keeps.kept += [keeps.kept[0], factor, keeps]
    return keeps


MAKERS: dict[str, Callable[[float], nn.Module]] = {
    "method of a module": lambda sign: Through(half(sign).forward, linear=False),
    "method of an object": lambda sign: Through(Multiply(sign).__call__),
    "object": lambda sign: Through(Multiply(sign)),
    "code of an object": lambda sign: Through((Multiply if sign > 0 else Negate)(1.0)),
    "setting of a module in a list": lambda sign: Through(Times(sign)),
    "partial": lambda sign: Through(functools.partial(times, sign)),
    "function in a partial": lambda sign: Through(functools.partial(twice(same) if sign > 0 else negated(same))),
    "decorator": lambda sign: Through((twice if sign > 0 else negated)(same)),
    "cache": lambda sign: Through(functools.cache((twice if sign > 0 else negated)(same))),
    "attribute of a function": lambda sign: Through(by_attribute(sign)),
    "lambdas in a line": lambda sign: Through([lambda x: -x, lambda x: x][sign > 0]),
    "array in a class": lambda sign: made_of(np.float32(sign)),
    "partial in a class": lambda sign: made_of(functools.partial(times, sign).args[0]),
    "function that refers to its module": lambda sign: in_a_loop(sign),
}


@pytest.mark.parametrize("how", MAKERS)
def test_two_classifiers_that_differ_anywhere_have_two_fingerprints(how: str) -> None:
    def print_of(sign: float) -> str:
        torch.manual_seed(0)
        return Classifier(MAKERS[how](sign).eval(), (1,), 2).fingerprint()

    assert print_of(1.0) == print_of(1.0) != print_of(-1.0)


SETTINGS: dict[str, float] = {"sign": 1.0}
ARRAY = np.ones(1, dtype=np.float32)
BEHIND = half(1.0).eval()
ONE = Multiply(1.0)
own = types.ModuleType("own")
own.inner = types.ModuleType("own.inner")  # type: ignore[attr-defined]
own.inner.sign = 1.0  # type: ignore[attr-defined]


class InsideAnother(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x], dim=1) * sum(FACTOR for _ in range(1))


class InADict(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x], dim=1) * SETTINGS["sign"]


class InAnArray(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x], dim=1) * float(ARRAY[0])


class InAModule(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return BEHIND(x)  # type: ignore[no-any-return]


class InAnObject(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return ONE(torch.cat([x, -x], dim=1))


class InAnotherFile(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x], dim=1) * own.inner.sign  # type: ignore[no-any-return]


class MakesAnother(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return InADict()(x)  # type: ignore[no-any-return]


def test_globals_of_any_kind_are_in_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = (InsideAnother, InADict, InAnArray, InAModule, InAnObject, InAnotherFile, MakesAnother)

    def prints() -> list[str]:
        return [Classifier(kind().eval(), (1,), 2).fingerprint() for kind in kinds]

    before = prints()
    assert prints() == before and len(set(before)) == len(kinds)
    monkeypatch.setattr(f"{__name__}.FACTOR", -1.0)
    monkeypatch.setitem(SETTINGS, "sign", -1.0)
    monkeypatch.setattr(f"{__name__}.ARRAY", -ARRAY)
    monkeypatch.setitem(BEHIND._parameters, "weight", nn.Parameter(-BEHIND.weight))
    monkeypatch.setattr(ONE, "factor", -1.0)
    monkeypatch.setattr(own.inner, "sign", -1.0)
    assert not set(prints()) & set(before)


def test_what_cannot_be_read_has_no_fingerprint_and_is_smoothed_all_the_same() -> None:
    torch.manual_seed(0)
    kept = (threading.Lock(), (i for i in range(3)), types.ModuleType("unknown"))
    modules: list[nn.Module] = [torch.jit.trace(half(1.0), torch.zeros(1, 1))]  # type: ignore[no-untyped-call]
    for unreadable in kept:
        modules.append(half(1.0))
        modules[-1].kept = unreadable  # type: ignore[assignment]
    for module in modules:
        classifier = Classifier(module.eval(), (1,), 2)
        with pytest.raises(ConfigError, match="cannot be read"):
            classifier.fingerprint()
        x = torch.ones(1, 1, dtype=torch.float64)
        assert certbench.certify({"name": "smoothing", "n": 100}, classifier, x, L2).prediction == 0
        assert Counter.of(classifier, Gaussian(0.25)).key is None


def test_checks_of_annotations_leave_the_fingerprint_as_it_is() -> None:
    """The tests run with them, the command line without."""
    program = "from certbench.models import zoo; print(zoo.load('mlp-small').fingerprint())"
    plain = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    assert hasattr(Normalise.forward, "__wrapped__")
    assert zoo.load("mlp-small").fingerprint() == plain
