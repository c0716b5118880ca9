"""What errors of libraries say, in a line."""

import pytest

from sentexp.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "MemoryError"),
        (ValueError(" \n"), "ValueError"),
        (OSError("a disk is full\nand more"), "a disk is full"),
        (RuntimeError("x" * 1000), "x" * 300),
    ],
)
def test_the_first_line_says_what_the_error_says(error, line):
    assert first_line(error) == line
