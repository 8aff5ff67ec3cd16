from pathlib import Path

import pytest

from certbench import ConfigError
from certbench.external.audit_log import audit_log
from certbench.external.output import told
from certbench.external.published import read_cells
from tests.support.logs import Audit, honest, log, text
from tests.support.terminal import text_of


def test_published_cells_are_held_against_their_log(audit: Audit, tmp_path: Path) -> None:
    rows, at = honest(), 0.5
    value = log(rows).accuracy(at)
    files = {"cifar10/net/noise_0.25/sigma_0.25": text(rows), "cifar10/net/noise_0.12/sigma_0.25": text(rows)}
    table = "dataset,network,eps,verified_accuracy,method\n{}MNIST,mlp,0.1,97.0,ibp\n"
    for published, code, words in (
        (f"{value:.1f}", 0, "1 of 1 cells reproduced"),
        (f"{value + 0.2:.1f}", 3, "0 of 1 cells reproduced"),
        (f"{value - 0.2:.1f}", 0, "warning"),
        (f"{value + 0.2:.0f}", 0, "1 of 1 cells reproduced"),
    ):
        (tmp_path / "cells.csv").write_text(table.format(f"CIFAR-10,net sigma=0.25,{at},{published},smoothing\n"))
        found, shown, document = audit(files, published=tmp_path / "cells.csv")
        assert found == code and words in shown, published
        assert [len(entry["cells"]) for entry in document["logs"]] == [1, 0]  # trained with other noise: not its log
    (tmp_path / "cells.csv").write_text(
        f"log,radius,accuracy,n,alpha\nnoise_0.12/sigma_0.25,0.5,{value:.1f},100000,1e-4\n"
    )
    found, shown, document = audit(files, published=tmp_path / "cells.csv")
    assert found == 3 and shown.count("alpha = 0.0001 is refuted") == 1  # the table's own claim


@pytest.mark.parametrize("content", ["", "log,radius\nx,0.5\n", "log,radius,accuracy\nx,half,1\n", "a,b\n1,2\n"])
def test_a_table_that_cannot_be_read_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text(content)
    with pytest.raises(ConfigError, match=r"cells\.csv"):
        read_cells(tmp_path / "cells.csv")


PAPER = {
    ("cifar10", "resnet110", (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)): {
        "0.12": (0.59, 0.00, 0.00, 0.00, 0.00, 0.00),
        "0.25": (0.60, 0.43, 0.27, 0.00, 0.00, 0.00),
        "0.50": (0.55, 0.41, 0.32, 0.23, 0.15, 0.09),
        "1.00": (0.39, 0.34, 0.28, 0.22, 0.17, 0.14),
    },
    ("imagenet", "resnet50", (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)): {
        "0.25": (0.49, 0.00, 0.00, 0.00, 0.00, 0.00),
        "0.50": (0.46, 0.37, 0.29, 0.00, 0.00, 0.00),
        "1.00": (0.38, 0.33, 0.26, 0.19, 0.15, 0.12),
    },
}
"""The tables of certified accuracy by noise and radius of Cohen et al. (2019)."""


def test_every_cell_of_the_papers_tables_is_reproduced(cohen: Path, tmp_path: Path) -> None:
    lines, claims = ["log,radius,accuracy"], 0
    for (data, network, radii), table in PAPER.items():
        for sigma, row in table.items():
            name = f"{data}/{network}/noise_{sigma}/test/sigma_{sigma}"
            lines += [f"{name},{r},{100 * cell:.0f}" for r, cell in zip(radii, row, strict=True)]
            claims += len(row)
    (tmp_path / "paper.csv").write_text("\n".join(lines))
    found = audit_log(cohen, published=tmp_path / "paper.csv")
    assert found.exit_code == 0
    assert f"{claims} of {claims} cells reproduced, 0 have no log" in text_of(told(found))
