"""certbench's own bounds, held to the committed baseline: what CI fails on when one becomes looser, or wrong.

After a change that is meant: `certbench run guard`, then
`certbench baseline update reports/runs/guard --file reports/guard/baseline.json --reason TEXT`.
"""

import subprocess
import sys
from pathlib import Path

import pytest

BASELINE = Path(__file__).parents[2] / "reports" / "guard" / "baseline.json"


@pytest.mark.usefixtures("lirpa", "solvers")
def test_no_bound_of_the_suite_guard_is_looser_than_its_baseline(tmp_path: Path) -> None:
    def certbench(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "certbench.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    ran = certbench("run", "guard", "--out", "run")
    assert ran.returncode == 0, ran.stderr
    compared = certbench("compare", str(BASELINE), "run")
    assert compared.returncode == 0, compared.stdout + compared.stderr
