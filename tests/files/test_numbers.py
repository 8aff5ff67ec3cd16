import pytest

from certbench.files.numbers import decimal, is_decimal, is_number


def test_only_finite_decimal_numbers_are_read_from_files_of_programs() -> None:
    assert [decimal(text) for text in ("3", "-.5", "+1.", "1e-3", "2.5E+1")] == [3, -0.5, 1, 0.001, 25]
    for text in ("1_0", "inf", "nan", "1e999", "\u0663", " 1", "1 ", "0x1p3", "", ".", "1e", "8/255"):
        assert not is_decimal(text)
        with pytest.raises(ValueError, match="no finite number"):
            decimal(text)
    assert is_number("inf")
