"""The command `recertify`."""

import json
from pathlib import Path

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
