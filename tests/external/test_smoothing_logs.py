from pathlib import Path

import pytest

from certbench import ConfigError
from certbench.external.findings import Severity
from certbench.external.smoothing_logs import check, read, seconds
from tests.support.logs import HEADER, honest, log, right, text


@pytest.mark.parametrize(
    "header",
    [
        HEADER,
        ["idx       ", " label     ", " prediction", " radius    ", " correct   ", " time"],
        ["original_idx", "label", "pred", "radius", "correct", "time"],
    ],
)
def test_headers_of_descendants_mean_the_same(header: list[str]) -> None:
    assert log(honest(), header).entries == log(honest()).entries


def test_columns_that_are_more_or_fewer() -> None:
    rows = honest()
    more = log([[*row, i] for i, row in enumerate(rows)], [*HEADER, "perturbation"])
    assert more.entries == log(rows).entries and more.extra["perturbation"][3] == "3"
    bare = log([row[:4] for row in rows], HEADER[:4])
    assert bare.clean == log(rows).clean and not any(f.severity is Severity.REFUTED for f in check(bare))
    predicted = log([[*row[:3], *row[4:]] for row in rows], ["idx", "label", "predict", "correct", "time"])
    assert not predicted.has_radii and predicted.clean == log(rows).clean and not check(predicted)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"sigma_1:1: the header"),
        ("idx,label,predict\n0,1,1\n", r"sigma_1:1: the header"),
        ("idx\tlabel\tpredict\n", r"sigma_1:1: .* no row"),
        ("label\tpredict\tpred\n1\t1\t1\n", r"sigma_1:1: predict and pred both"),
        ("label\tpredict\n1\t1\n1\n", r"sigma_1:3: 1 columns"),
        ("label\tpredict\n1\t1\n\n", r"sigma_1:3: 1 columns"),
        ("label\tpredict\n1\t1.5\n", r"sigma_1:2: '1.5' is no predict"),
        ("label\tpredict\tradius\n1\t1\t0.1\n1\t1\tbig\n", r"sigma_1:3: 'big' is no radius"),
        ("label\tpredict\tcorrect\n1\t1\tyes\n", r"sigma_1:2: 'yes' is no correct"),
        ("label\tpredict\ttime\n1\t1\t0:61\n", r"sigma_1:2: '0:61' is no time"),
    ],
)
def test_what_is_no_log_is_refused_with_its_line(content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(Path("sigma_1"), content)


def test_durations() -> None:
    assert [seconds(t) for t in ("15.4", "0:02:31.238689", "1 day, 0:00:01", "2 days, 1:00:00")] == [
        *(15.4, 151.238689, 86401, 176400)
    ]


@pytest.mark.parametrize(
    ("path", "sigma", "trained"),
    [
        ("noise_0.12/test/sigma_0.50", 0.5, 0.12),
        ("noise_0.12/test/log.tsv", 0.12, 0.12),
        ("sigma=1.0/x.tsv", 1.0, None),
        ("sigma_25/log", None, None),  # hundredths, perhaps
        ("log.tsv", None, None),
    ],
)
def test_the_noise_is_read_from_the_path(path: str, sigma: float | None, trained: float | None) -> None:
    found = log(honest(rows=2), name=path)
    assert (found.sigma, found.trained) == (sigma, trained)


# figures


def test_figures_are_those_of_the_rows() -> None:
    rows = [
        [0, 3, 3, "0.5", 1, "1.0"],
        [1, 3, 4, "0.9", 0, "1.0"],
        [2, 5, -1, "0.0", 0, "1.0"],
        [3, 6, 6, "0.25", 1, "1.0"],
    ]
    found = log(rows)
    assert (found.clean, found.abstained, found.average_radius) == (50, 25, 0.1875)
    assert [found.accuracy(r) for r in (0, 0.25, 0.3, 0.5, 0.6)] == [50, 50, 25, 25, 0]
    assert [found.by_rounding(r) for r in (0.2, 0.25, 0.5)] == [0, 1, 1]


def test_a_column_nobody_knows_may_be_a_running_total_too() -> None:
    plain = honest()
    rows = [[*row, right(plain, i)] for i, row in enumerate(plain)]
    assert [f.check for f in check(log(rows, [*HEADER, "count"])) if f.severity is Severity.WARNING] == ["cumulative"]


def test_a_small_radius_may_be_printed_as_zero() -> None:
    fine, coarse = ([*honest(form=form)] for form in ("{:.3}", "{:.4f}"))
    fine[0][3], coarse[0][3] = "0.0", "0.0000"
    assert [[f.check for f in check(log(rows)) if f.severity is Severity.WARNING] for rows in (fine, coarse)] == [
        ["abstention"],
        [],
    ]


def test_a_line_without_an_end() -> None:
    assert [f.check for f in check(read(Path("a"), text(honest())[:-1])) if f.severity is Severity.WARNING] == [
        "truncated"
    ]
