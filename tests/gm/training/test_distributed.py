"""Joining the processes that msrun started, as it is done for cards."""

import os

import mindspore as ms
import pytest
from mindspore import communication

from gm.training.distributed import MSRUN_WORKERS, Communicator, connect


@pytest.fixture
def calls(monkeypatch):
    """What was done, in order; nothing is."""
    done = []
    monkeypatch.setattr(os, "environ", {MSRUN_WORKERS: "2", "HCCL_EXEC_TIMEOUT": "600"})
    monkeypatch.setattr(communication, "init", lambda: done.append(("init", os.environ["HCCL_CONNECT_TIMEOUT"])))
    monkeypatch.setattr(communication, "get_rank", lambda: 1)
    monkeypatch.setattr(communication, "get_group_size", lambda: 2)
    monkeypatch.setattr(ms, "set_auto_parallel_context", lambda **settings: done.append(("settings", settings)))
    monkeypatch.setattr(Communicator, "wait", lambda self: done.append(("wait", self)))
    return done


def test_cards_have_hours_meet_at_once_and_sum_gradients_together(calls):
    assert connect(True, True, "Ascend") == Communicator(1, 2)
    (_, seconds), (_, settings), (last, _) = calls
    assert seconds == "7200" and os.environ["HCCL_EXEC_TIMEOUT"] == "600" and last == "wait"  # the user's own stays
    assert settings["enable_parallel_optimizer"] and settings["comm_fusion"]["allreduce"]["mode"] == "size"
