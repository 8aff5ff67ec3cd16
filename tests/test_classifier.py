import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from certbench import Classifier, ConfigError


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


def test_a_module_in_training_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="training mode"):
        Classifier(nn.Sequential(linear(), nn.Dropout()), (9,), 3)


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
