"""Good files of every kind, made once for all tests of this folder."""

import pytest

from tests.safety.doors import Kit


@pytest.fixture(scope="session")
def kit(tmp_path_factory):
    return Kit(tmp_path_factory.mktemp("kit"))
