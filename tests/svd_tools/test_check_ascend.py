"""The check of a card, run on the CPU."""

import copy
import json

import numpy as np
import pytest

from gm.errors import UserError
from svd_tools.ascend.cases import layers
from svd_tools.check_ascend import KEPT, TOLERANCES, differences, digest, main, read_report


@pytest.mark.parametrize(("precision", "largest"), [("fp32", 1e-5), ("fp16", 5e-3)])
def test_this_cpu_s_layers_are_their_formulas(precision, largest):
    errors = {name: np.abs(ours - theirs).max() / np.abs(theirs).max() for name, ours, theirs in layers(precision)}
    assert len(errors) == 13 and max(errors.values()) < largest < TOLERANCES[precision]


def entry(*numbers, **more):
    return {**digest(np.array(numbers)), **more}


def test_differences_are_found_by_name():
    peer = {"results": {"fp32": {"unet": entry(1.0, 2.0), "silu": entry(3.0)}}}
    fine = {"fp32": {"unet": entry(1.0, 2.001), "gelu": entry(1.0, error=1e-6)}, "fp16": {"unet": entry(1.01, 2.0)}}
    assert differences(fine, peer) == [] and fine["fp16"]["unet"]["error"] == 0.005
    wrong = {"fp32": {"unet": entry(1.0, float("nan")), "gelu": entry(1.0, error=0.1)}, "fp16": {"silu": entry(2.0)}}
    names = [line.partition(" differs")[0] for line in differences(copy.deepcopy(wrong), peer)]
    assert names == ["unet in fp32", "gelu in fp32", "silu in fp16"]
    assert [line.partition(" differs")[0] for line in differences(wrong, None)] == ["gelu in fp32"]


def test_a_digest_is_spread_over_the_result():
    found = digest(np.arange(1000.0).reshape(10, 100))
    assert found["largest"] == 999 and len(found["some"]) == KEPT
    assert found["some"][0] == 0 and found["some"][-1] == 999


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"results": {}}'])
def test_what_is_no_report(tmp_path, content):
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(UserError, match="^--against: .*report.json is no report"):
        read_report(str(path))


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    out = tmp_path / "report.json"
    main(["--device_target=CPU", f"--out={out}"])
    report = json.loads(out.read_text())
    assert report["failures"] == [] and report["versions"]["device"] == "CPU"
    assert report["overflow"]["skipped"] >= 1 and report["two_cards"] == "sum [2.0, 2.0, 2.0, 2.0]"
    assert set(report["steps"]) == {"sample", "decode", "train"}
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    main(["--device_target=CPU", f"--out={out}", f"--against={out}"])
