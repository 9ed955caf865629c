import pytest

from wald.core.units import format_size, parse_duration_s, parse_size_bytes


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0ms"),
        (0.2, "200ms"),
        (0.0005, "0.5ms"),
        (5.0, "5s"),
        (900.0, "15min"),
        (86_400.0, "1d"),
    ],
)
def test_durations_are_read_with_their_unit(seconds: float, text: str):
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(("size", "text"), [(0, "0B"), (1_000, "1000B"), (4 << 20, "4MiB")])
def test_sizes_are_said_in_the_largest_unit_without_a_fraction(size: int, text: str):
    assert format_size(size) == text
    assert parse_size_bytes(text) == size
