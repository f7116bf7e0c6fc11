"""One random peer of each model, and the engine with its weights, for all parity tests."""

from pathlib import Path

import pytest

from gm.config.factory import instantiate, load_config
from gm.model import DiffusionEngine
from tests.parity.peers import CONFIG, Peer, make_peer
from tests.parity.sd_peers import MODELS, StableDiffusion, make_stable_diffusion


@pytest.fixture(scope="session")
def peer(tmp_path_factory) -> Peer:
    return make_peer(Path(tmp_path_factory.mktemp("peer")))


@pytest.fixture(scope="session", params=MODELS)
def stable_diffusion(request, tmp_path_factory) -> StableDiffusion:
    return make_stable_diffusion(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def engine(peer) -> DiffusionEngine:
    engine = instantiate(load_config(CONFIG)["model"])
    engine.attach(peer.checkpoint)
    return engine
