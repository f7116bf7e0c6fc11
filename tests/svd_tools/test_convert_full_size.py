"""Full-size round trips on all 2446 names and shapes (9.56 GB): bit-exact, in little memory."""

import shutil

import pytest

from benchmarks.convert import measure

ROOM = 35e9
PEAK_GB = 3 * 1.0737  # 3 GiB
MUCH_SLOWER = 10  # times `cp`: what a busy machine may take; benchmarks/convert.md has the figures of a quiet one


@pytest.mark.slow
def test_full_size_round_trips(tmp_path):
    if shutil.disk_usage(tmp_path).free < ROOM:
        pytest.skip("needs 35 GB of disk")
    measurements = measure(tmp_path / "work")  # raises if a round trip is not bit-exact
    assert len(measurements) == 8
    for measurement in measurements:
        assert measurement.peak_gb < PEAK_GB, measurement
        assert measurement.seconds < MUCH_SLOWER * measurement.copy_seconds, measurement
