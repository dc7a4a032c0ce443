"""The tiny world the shield stage is tested on."""

import pytest

from tiny_world import World, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("shield"))
