"""Several processes that train together."""

import pytest

from tests.e2e.training import Workplace, checkpoints, largest_change, largest_difference, losses

# AdamW divides a gradient by its own size: where it is zero but for rounding (a bias in front of a norm), rounding
# would decide over a whole step. With this ε such gradients move nothing.
EPS = "--train.optimizer.eps=1e-4"
TOLERANCE = 1e-5  # of each tensor's norm; the mean over the clips is summed in another order


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_clips_in_each_step(tmp_path):
    place = Workplace(tmp_path)
    alone = place.train(tmp_path / "alone", "--train.dataloader.batch_size=2", EPS)
    done = place.msrun(2, tmp_path / "together", EPS)
    together = tmp_path / "together"
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(together) == pytest.approx(losses(alone), rel=1e-5) and sorted(losses(alone)) == [1, 2, 3, 4]
    ours, theirs = (checkpoints(folder)[-1] for folder in (together, alone))
    assert ours.name == theirs.name == "step_00000004"
    for kind in ("weight", "average"):
        assert largest_difference(ours / "state.safetensors", theirs / "state.safetensors", kind) < TOLERANCE
    assert largest_change(place.checkpoint, ours / "state.safetensors") > 100 * TOLERANCE


@pytest.mark.slow
def test_what_several_processes_began_one_goes_on_with(tmp_path):
    """The same number of clips in each step, spread over another number of processes."""
    place = Workplace(tmp_path)
    done = place.msrun(2, tmp_path / "run", "--train.max_steps=2")
    assert done.returncode == 0, done.stdout + done.stderr
    place.train(tmp_path / "run", "--train.dataloader.batch_size=2", "--train.resume=auto")
    whole = place.train(tmp_path / "whole", "--train.dataloader.batch_size=2")
    assert losses(tmp_path / "run") == pytest.approx(losses(whole), rel=1e-3)


@pytest.mark.slow
def test_a_user_error_ends_all_processes(tmp_path):
    place = Workplace(tmp_path)
    done = place.msrun(2, tmp_path / "run", "--train.dataset.init_args.frames=100")
    assert done.returncode != 0
    logs = [path.read_text() for path in (tmp_path / "msrun").glob("worker_*.log")]
    assert any("error: --train.dataset.init_args.frames: no usable row" in log for log in logs)  # the first ends both
