"""Check of the installation: every part is used once, not only imported; a failure comes with its cure."""

import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from certbench.core import registry
from certbench.verifiers.linear.lirpa.release_0_3 import INSTALL

_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Check:
    """The result for one part.

    Attributes:
        name: name of the part.
        ok: whether the part did what certbench needs.
        version: version of the part; empty if it is not installed or has none.
        detail: what the part did, or how it failed.
        mend: command that repairs or installs the part; empty if it works.
        optional: whether nothing is broken if it is not installed.
    """

    name: str
    ok: bool
    version: str
    detail: str
    mend: str = ""
    optional: bool = False

    @property
    def missing(self) -> bool:
        """Whether it is not installed, and need not be."""
        return self.optional and not self.ok and not self.version


def examine() -> list[Check]:
    """Use every part once; a failure becomes a check that is not ok, never an exception."""
    checkout = (_ROOT / ".git").exists()
    reinstall = "python bootstrap.py setup" if checkout else "pip install --force-reinstall --no-deps certbench"
    restore = f'git -C "{_ROOT}" restore models/weights' if checkout else reinstall
    return [
        _check("Python", _python, "python3.11 -m venv .venv"),
        _check("certbench", _certbench, reinstall),
        _check("torch", _torch),
        _check("scipy", _scipy),
        _check("scikit-learn", _scikit_learn),
        _check("safetensors", _safetensors),
        _check("foolbox", _foolbox),
        _check("auto-LiRPA", _auto_lirpa, INSTALL),
        _check("onnx", _onnx, 'pip install "certbench[onnx]"'),
        _check("vnnlib", _vnnlib, 'pip install "certbench[vnnlib]"'),
        _check("highspy", _highspy, 'pip install "certbench[solvers]"'),
        _check("cvxpy", _cvxpy, 'pip install "certbench[solvers]"'),
        replace(_check("ray", _ray, 'pip install "certbench[ray]"'), optional=True),
        _check("shipped weights", _weights, restore),
    ]


def _check(name: str, use: Callable[[], str], mend: str = "") -> Check:
    try:
        with warnings.catch_warnings(action="ignore"):  # parts warn about their own parts
            return Check(name, True, _version(name), use())
    except Exception as error:  # the reader wants to know whatever breaks a part
        failure = f"{type(error).__name__}: {error}".partition("\n")[0]
        return Check(name, False, _version(name), failure, mend or f'pip install "{_requirement(name)}"')


def _version(name: str) -> str:
    try:
        return sys.version.split()[0] if name == "Python" else version(name)
    except PackageNotFoundError:
        return ""


def _requirement(package: str) -> str:
    """Return the package with the versions that certbench declares, for example `torch>=2.6`."""
    try:
        declared = requires("certbench") or []
    except PackageNotFoundError:
        declared = []
    return next((entry for entry in declared if re.split(r"[^\w-]", entry)[0] == package), package)


def _expect(holds: bool, failure: str) -> None:
    if not holds:
        raise RuntimeError(failure)


def _python() -> str:
    _expect(sys.version_info >= (3, 11), "certbench needs Python 3.11 or newer")
    return sys.executable


def _certbench() -> str:
    _expect(bool(registry.table()), "no certifiers are registered: certbench is on the path, but not installed")
    return f"{len(registry.table())} certifiers"


def _torch() -> str:
    import torch

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        x = torch.tensor([3.0, 4.0], dtype=torch.float64, device=device, requires_grad=True)
        (gradient,) = torch.autograd.grad(x @ x, x)
        _expect(gradient.tolist() == [6.0, 8.0], f"a gradient is wrong on {device}")
    where = f"CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}" if "cuda" in devices else "CPU"
    return f"{where}; {torch.get_num_threads()} threads"


def _scipy() -> str:
    from scipy.stats import beta

    bound = float(beta.ppf(0.001, 1000, 1))  # Clopper-Pearson for 1000 of 1000
    _expect(abs(bound - 0.001 ** (1 / 1000)) < 1e-12, f"the Clopper-Pearson bound of 1000 of 1000 came out as {bound}")
    return "Clopper-Pearson bound right"


def _scikit_learn() -> str:
    from sklearn.datasets import load_digits

    images = load_digits().images
    _expect(images.shape == (1797, 8, 8), f"its digits have shape {images.shape}")
    return "1797 digits read"


def _safetensors() -> str:
    import torch
    from safetensors.torch import load, save

    written = {"weight": torch.arange(6.0).reshape(2, 3)}
    _expect(torch.equal(load(save(written))["weight"], written["weight"]), "a tensor came back changed")
    return "tensors written and read"


def _foolbox() -> str:
    import foolbox
    import torch

    model = foolbox.PyTorchModel(torch.nn.Identity().eval(), bounds=(0, 1), device="cpu")
    x, label = torch.tensor([[0.6, 0.4]]), torch.tensor([0])  # the closest counterexample is at Linf 0.1
    _, _, found = foolbox.attacks.FGSM()(model, x, label, epsilons=[0.09, 0.11])
    _expect(found.flatten().tolist() == [False, True], f"FGSM at 0.09 and 0.11, where the answer changes: {found}")
    return "FGSM finds the counterexample that there is"


def _auto_lirpa() -> str:
    import torch

    from certbench.core.certification import certify
    from certbench.core.classifier import Classifier
    from certbench.core.options import build
    from certbench.core.threat import Linf

    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    first.weight.data, second.weight.data = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.eye(2)
    first.bias.data = second.bias.data = torch.zeros(2)
    classifier = Classifier(torch.nn.Sequential(first, torch.nn.ReLU(), second).eval(), (2,), 2)
    certificate = certify(build({"name": "ibp", "engine": "auto-lirpa"}), classifier, torch.tensor([[1.0, 0.5]]), Linf)
    radius = float(certificate.radius)  # interval arithmetic gives 1/4 here, and the truth is 1/2
    _expect(0.24 < radius <= 0.25, f"interval bounds give the radius {radius}, not 1/4")
    old = _version("auto-LiRPA") == "0.3"
    return "interval bounds right" + ("; it knows fewer maps than releases from 0.7 on, and needs shims" if old else "")


def _onnx() -> str:
    from tempfile import TemporaryDirectory

    import onnx
    import torch

    from certbench.formats.onnx.loading import load

    ends = [onnx.helper.make_tensor_value_info(name, 1, ["n", 2]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    with TemporaryDirectory() as folder:
        path = Path(folder, "relu.onnx")
        path.write_bytes(model.SerializeToString())
        found = load(path)(torch.tensor([[-1.0, 2.0]])).tolist()
    _expect(found == [[0.0, 2.0]], f"ReLU of (-1, 2) gave {found}")
    return f"a network read as onnxruntime {_version('onnxruntime')} reads it"


def _vnnlib() -> str:
    import vnnlib  # noqa: F401

    from certbench.formats.vnnlib.version2 import parse

    head = "(vnnlib-version <2.0>)(declare-network n (declare-input X float32 [1]) (declare-output Y float32 [1]))"
    found = parse(f"{head}(assert (and (>= X[0] -0.5) (<= X[0] 0.5) (>= Y[0] 2.0)))").disjuncts[0]
    _expect(found.lower.tolist() == [-0.5] and found.constants.tolist() == [-2.0], f"{found}")
    return "a property of VNN-LIB 2.0 read"


def _highspy() -> str:
    import highspy

    solver: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.silent()
    solver.addVar(0.0, 10.0)
    solver.addRow(3.5, 10.0, 1, [0], [1.0])
    solver.changeColCost(0, 1.0)
    solver.changeColIntegrality(0, highspy.HighsVarType.kInteger)
    solver.run()
    bound = solver.getInfo().mip_dual_bound
    _expect(bool(abs(bound - 4) < 1e-6), f"the least whole number above 3.5 came out as {bound}")
    return "a mixed-integer program solved"


def _cvxpy() -> str:
    import cvxpy

    matrix = cvxpy.Variable((2, 2), PSD=True)
    problem = cvxpy.Problem(cvxpy.Minimize(matrix[0, 0] + matrix[1, 1]), [matrix[0, 1] == 1])
    value = problem.solve(solver="SCS")  # type: ignore[no-untyped-call]
    _expect(bool(abs(value - 2) < 1e-2), f"a semidefinite program whose value is 2 gave {value}")
    return "a semidefinite program solved"


def _ray() -> str:
    import ray
    from ray.cloudpickle import dumps, loads

    from certbench.runs.executors.ray import Seat

    _expect(loads(dumps(Seat)).__name__ == "Seat", "what runs on a cluster came back changed")
    _expect(callable(ray.init) and not ray.is_initialized(), "this process is part of a cluster already")
    return "what runs on a cluster can be sent there; no cluster was started"


def _weights() -> str:
    from certbench.models import zoo

    for name in zoo.names():
        zoo.load(name)  # compares the sha256 with the card
    return f"{len(zoo.names())} models, sha256 as on their cards"
