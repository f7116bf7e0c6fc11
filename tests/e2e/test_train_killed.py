"""A run that is killed over and over ends as one that is not."""

import json
import signal
import time

import numpy as np
import pytest

from tests.e2e.training import Workplace, checkpoints, losses, same_tensors

KILLS, EPOCHS = 10, 6  # of four steps each
FLAGS = ("--train.checkpoint_every=1", "--train.keep=2", "--train.resume=auto")


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(tmp_path):
    """From the start of the program on: while it sets up, trains, and writes the checkpoint of every step."""
    place = Workplace(tmp_path)
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "disturbed"
    moments = step_moments(place, undisturbed)
    rng = np.random.default_rng()
    kills, reached = 0, []
    for _ in range(2 * KILLS):  # a run that gets to its end before it is killed does not count
        process = place.start(output, *FLAGS, epochs=EPOCHS)
        time.sleep(rng.uniform(0.5 * moments[0], moments[3]))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        reached.append(checkpoints(output)[-1].name if (output / "checkpoints").exists() else None)
        if kills == KILLS:
            break
    assert kills == KILLS
    place.train(output, *FLAGS, epochs=EPOCHS)
    assert losses(output) == losses(undisturbed) and len(losses(output)) == 4 * EPOCHS
    assert len(set(reached)) > 1, "no kill hit a run that had got on"
    assert [path.name for path in checkpoints(output)] == ["step_00000023", "step_00000024"]
    for name in ("state.safetensors", "model.safetensors"):
        assert same_tensors(checkpoints(output)[-1] / name, checkpoints(undisturbed)[-1] / name)
    ours, theirs = (
        json.loads((checkpoints(folder)[-1] / "state.json").read_text()) for folder in (output, undisturbed)
    )
    assert ours == theirs


def step_moments(place, output):
    """Trains undisturbed; seconds from the program's start until each step."""
    started, moments = time.time(), []
    process = place.start(output, *FLAGS, epochs=EPOCHS)
    metrics = output / "metrics.jsonl"
    while process.poll() is None:
        done = metrics.read_text().count("\n") if metrics.exists() else 0
        moments += [time.time() - started] * (done - len(moments))
        time.sleep(0.02)
    process.communicate()
    assert process.returncode == 0
    return moments
