"""The command `recertify`."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from certbench.exit_codes import ExitCode
from tests.cli.conftest import Run


def test_counts_become_certificates_printed_and_written(certbench: Run) -> None:
    Path("counts.txt").write_text("label,a,b\n0,900,100\n1,20,980\n")
    code, out, _ = certbench("recertify", "counts.txt", "--sigma", "0.5", "--out", "out.json", "--radius", "0.5")
    assert code == ExitCode.OK
    assert out.startswith("counts.txt: L2, gaussian noise, sigma 0.5, alpha 0.001\n")
    heads, first, second = (line.split() for line in out.splitlines()[1:4])
    assert heads == ["rule", "inputs", "abstained", "right", "%", "@0.5", "ACR"]
    assert (first[:5], second[:3]) == (["one-vs-rest", "2", "0", "100.0", "100.0"], ["two-class", "2", "0"])
    assert out.endswith("4 certificates: out.json\n")
    assert len(json.loads(Path("out.json").read_text())) == 4
    for arguments, code in (
        (["counts.txt"], ExitCode.USAGE),
        (["counts.txt", "--sigma", "0.5", "--out", "out.txt"], ExitCode.USAGE),
        (["counts.txt", "--sigma", "0.5", "--out", "no/out.csv"], ExitCode.STORE),
    ):
        assert certbench("recertify", *arguments)[0] == code


@pytest.mark.parametrize("wrong", ["labels", "words", "axes", "no array", "a claim", "votes"])
def test_counts_that_make_no_sense_are_refused(certbench: Run, wrong: str) -> None:
    counts = np.array([[900, 100], [20, 980]])
    arrays = {
        "labels": {"counts": counts, "labels": np.arange(3)},
        "words": {"counts": counts, "labels": np.array(["a", "b"])},
        "axes": {"counts": counts, "labels": np.array([[0, 1]])},
        "votes": {"counts": np.array([[2**62, 2**62], [1, 1]])},
    }
    np.savez("counts.npz", **arrays.get(wrong, {"counts": counts}))
    if wrong in ("no array", "a claim"):
        header = b"\x93NUMPY\x01\0F\0" + b"{'descr': '<i8', 'fortran_order': False, 'shape': (1300000, 1300000)}\n"
        with zipfile.ZipFile("counts.npz", "w") as file:
            file.writestr("counts.npy", b"hello" if wrong == "no array" else header)
    code, _, err = certbench("recertify", "counts.npz", "--sigma", "0.5")
    assert code == ExitCode.USAGE and err.startswith("error: ")


def test_a_sigma_whose_radii_are_no_numbers_is_refused(certbench: Run) -> None:
    Path("counts.txt").write_text("a,b\n900,100\n20,980\n")
    assert certbench("recertify", "counts.txt", "--sigma", "1e308")[0] == ExitCode.USAGE
    assert certbench("recertify", "counts.txt", "--sigma", "1e300")[0] == ExitCode.OK
