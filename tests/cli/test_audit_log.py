"""The command `audit-log`."""

import json
from pathlib import Path

from certbench.exit_codes import ExitCode
from tests.cli.conftest import Run

LOG = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t{radius}\t1\t0:00:01\n20\t2\t2\t0.31\t1\t0:00:02\n"


def test_a_log_is_audited_printed_and_written(certbench: Run) -> None:
    Path("sigma_0.25").write_text(LOG.format(radius="0.25"))
    code, out, _ = certbench("audit-log", "sigma_0.25", "--json", "out.json")
    assert code == ExitCode.OK and "sigma_0.25" in out
    assert json.loads(Path("out.json").read_text())["logs"][0]["inputs"] == 2
    Path("sigma_0.25").write_text(LOG.format(radius="25"))
    code, out, _ = certbench("audit-log", "sigma_0.25")
    assert code == ExitCode.UNSOUND and "refuted sigma_0.25: ladder: the radius 25 is above" in out
    code, out, _ = certbench("audit-log", "nowhere")
    assert code == ExitCode.USAGE and "unreadable: nowhere: " in out
    assert certbench("audit-log", "sigma_0.25", "--alpha", "2")[0] == ExitCode.USAGE
    assert certbench("audit-log", "sigma_0.25", "--json", "no/out.json")[0] == ExitCode.STORE
