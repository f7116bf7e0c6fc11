"""MindSpore's own Ascend backend compiles the commands, without a card: `make ascend-dry-run`.

What stays unseen: CANN's checks and kernels, real memory and times.
"""

import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from svd_tools.ascend.dry_run import dry_run, require_clean, stand_ins
from svd_tools.ascend.kernels import Kernel, Operand
from svd_tools.ascend.limits import violations
from tests.e2e.training import PYNATIVE, Workplace
from tests.svd_tools.small_model import save_random

PROJECT = Path(__file__).parents[2]
BROKEN = PROJECT / "tests/svd_tools/broken_on_ascend.py"
MINI = PROJECT / "tests/e2e/mini.yaml"
needs_compiler = pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64") or not shutil.which("g++"),
    reason="the dry run needs Linux and gcc",
)


@pytest.fixture(scope="session")
def environment():
    with stand_ins() as variables:
        yield {name: value for name, value in variables.items() if name != "MS_COMPILER_CACHE_ENABLE"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("ascend") / "mini.safetensors"
    save_random(path, MINI)
    return path


@pytest.fixture
def sample(environment, weights, tmp_path):
    """Runs image_to_video.py dry; returns what came of it."""

    def run(*flags):
        command = [PROJECT / "image_to_video.py", "--device_target=Ascend", "--image=examples/tiger.jpg"]
        command += [f"--output_dir={tmp_path}", f"--SVD.config={MINI}", f"--SVD.checkpoint={weights}"]
        command += ["--SVD.num_frames=2", "--SVD.height=64", "--SVD.width=64", "--SVD.sampling_steps=2", *flags]
        done = dry_run(list(map(str, command)), environment)
        require_clean(done)
        assert len(list(tmp_path.glob("*.mp4"))) == 1
        return done

    return run


@needs_compiler
def test_sampling(sample):
    done = sample()
    kinds = {kernel.kind for kernel in done.kernels} - {""}
    names = [kernel.name for kernel in done.kernels]
    assert kinds == {"aclnn", "host"} and names.count("FlashAttentionScore") == 8 and "Conv3DExt" in names
    assert 300 < done.summary()["kernels"] < 500


@pytest.fixture(scope="module")
def broken(environment):
    return dry_run([str(BROKEN)], environment).problems()


@needs_compiler
@pytest.mark.parametrize(
    ("comment", "told"),
    [
        ("PyExecute", "PyExecute runs Python"),
        ("host operator", "TensorToScalar runs on the host"),
        ("aclop", "Conv2D is compiled on the card's host"),
        ("width 9216", "Conv2DExt: (1, 4, 1, 9216) is 9216 wide"),
    ],
)
def test_what_would_stop_or_slow_a_card_is_named_with_its_place(broken, comment, told):
    lines = BROKEN.read_text().splitlines()
    (number,) = [index for index, line in enumerate(lines, 1) if line.endswith(f"# {comment}")]
    (problem,) = [problem for problem in broken if told in problem]
    place = f"{BROKEN.relative_to(PROJECT)}:{number}: "
    assert problem.startswith((place, f"near {place}"))


def kernel(name, *shapes, dtype="Float16", arguments=""):
    operands = [Operand(dtype, shape) for shape in shapes]
    return Kernel(name, "aclnn", operands, operands[:1], arguments, [], name)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (kernel("Add", (2**30,)), kernel("Add", (2**31,))),
        (kernel("Transpose", (1,) * 8), kernel("Transpose", (1,) * 9)),
        (kernel("Conv2DExt", (1, 4, 1, 4096), (4, 4, 1, 1)), kernel("Conv2DExt", (1, 4, 1, 4097), (4, 4, 1, 1))),
        (kernel("Conv3DExt", (10**6, 4, 3, 1, 9), (4, 4, 3, 1, 1)),
         kernel("Conv3DExt", (10**6 + 1, 4, 3, 1, 9), (4, 4, 3, 1, 1))),
        (kernel("Conv2DExt", (1, 4, 9, 9), (4, 4, 9, 9)), kernel("Conv2DExt", (1, 4, 999, 999), (4, 4, 256, 1))),
        (kernel("GroupNorm", (1, 4, 9), arguments="F32(1e-05)"),
         kernel("GroupNorm", (1, 4, 9), arguments="F32(1e-06)")),
        (kernel("GroupNormGrad", (1, 4, 9)), kernel("GroupNormGrad", (1, 240001, 9))),
        (kernel("FlashAttentionScore", (18432, 5, 14, 64), (18432, 5, 14, 64)),
         kernel("FlashAttentionScore", (2, 5, 14, 72), (2, 5, 14, 72))),
        (kernel("FlashAttentionScore", (2, 5, 14, 64), (2, 5, 14, 64)),
         kernel("FlashAttentionScore", (2, 5, 14, 64), (2, 5, 14, 64), dtype="Float32")),
    ],
    ids=lambda value: None if not isinstance(value, Kernel) else value.name,
)  # fmt: skip
def test_limits(good, bad):
    assert violations([good], PROJECT) == [] and len(violations([bad], PROJECT)) == 1


def test_operands_of_two_types():
    mixed = [Operand("Float16", (1, 4, 9, 9)), Operand("Float32", (4, 4, 3, 3))]
    (problem,) = violations([Kernel("Conv2DExt", "aclnn", mixed, mixed[:1], "", ["/there/x.py:3"], "net")], PROJECT)
    assert problem.startswith("net: Conv2DExt: its operands are of Float16, Float32; ")


def test_a_package_within_the_project_is_not_the_project():
    project = Path(sysconfig.get_path("purelib")).parents[2]
    own, package = f"{project}/train.py:3", sysconfig.get_path("purelib") + "/mindspore/ops.py:7"
    assert Kernel("Add", "aclnn", [], [], "", [own, package], "net").place(project) == "train.py:3"
    assert Kernel("Add", "aclnn", [], [], "", [package], "net", (own, package)).place(project) == "near train.py:3"


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ("--mode=1",),
        ("--SVD.amp_level=O0",),
        ("--SVD.num_frames=25", "--SVD.decode_chunk_size=7"),
        ("--SVD.feature_cache=2", "--SVD.sampling_steps=3"),
        ("--SVD.guidance_interval=[0.5,100]",),
        ("--SVD.tile_size=128", "--SVD.height=128", "--SVD.width=192"),
    ],
    ids=str,
)
def test_sampling_with(sample, flags):
    sample(*flags)


@needs_compiler
@pytest.mark.slow
def test_sampling_with_svd_tiny(environment, tmp_path):
    flags = ["--device_target=Ascend", "--image=examples/tiger.jpg", f"--output_dir={tmp_path}"]
    require_clean(dry_run([str(PROJECT / "image_to_video.py"), *flags, "--SVD.sampling_steps=2"], environment))


RUNS = {
    "temporal": (),
    "recompute, latent cache": ("--train.recompute=True", "--train.latent_cache.folder={folder}/cache"),
    "all, no average, O0": ("--train.temporal_only=False", "--train.ema_decay=0", "--train.amp_level=O0"),
    "lora": ("--train.lora.rank=4", "--train.lora.dropout=0.1"),
    "accumulation": ("--train.settings.gradient_accumulation_steps=2",),
    "one by one": (f"--environment.mode={PYNATIVE}",),
    "autoencoder": ("--train.stage=autoencoder", "--train.temporal_only=False", "--train.ema_decay=0",
                    "--train.dataset.init_args.frames=1"),
    "decoder": ("--train.stage=decoder", "--train.ema_decay=0"),
}  # fmt: skip


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_training(environment, tmp_path, name):
    place = Workplace(tmp_path)
    flags = [flag.format(folder=tmp_path) for flag in RUNS[name]]
    everywhere = ["--environment.device_target=Ascend", "--environment.mode=0", "--train.max_steps=2"]
    command = [str(PROJECT / "train.py"), *place.flags(tmp_path / "run", *everywhere, *flags)]
    require_clean(dry_run(command, environment))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_training_on_two_cards(environment, tmp_path, shard):
    """The first of two ranks; their sums are simulated."""
    place = Workplace(tmp_path)
    flags = ["--environment.device_target=Ascend", "--environment.mode=0", "--train.max_steps=2"]
    flags += ["--environment.distributed=True", f"--environment.shard_optimizer={shard}"]
    ranks = {"RANK_SIZE": "2", "RANK_ID": "0", "MS_WORKER_NUM": "2"}
    done = dry_run([str(PROJECT / "train.py"), *place.flags(tmp_path / "run", *flags)], {**environment, **ranks})
    require_clean(done)
    sums = [kernel for kernel in done.kernels if kernel.name == "AllReduce"]
    assert 0 < len(sums) < 20  # gradients are summed many at a time


@needs_compiler
@pytest.mark.slow
def test_the_command(tmp_path):
    script = [sys.executable, str(PROJECT / "svd_tools/ascend_dry_run.py"), str(BROKEN)]
    done = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and " problems on Ascend: " in done.stderr
    assert done.stderr.count("\n") == 1 and len(done.stderr) < 500
