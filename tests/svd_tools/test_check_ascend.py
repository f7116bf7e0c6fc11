"""The check of a card, run on the CPU: against its own stored report, and against one that was changed."""

import copy
import json

import numpy as np
import pytest

from gm.errors import UserError
from svd_tools import check_ascend
from svd_tools.ascend.cases import layers
from svd_tools.check_ascend import CPU_REPORT, KEPT, differences, main, read_report


@pytest.fixture(scope="module")
def stored():
    return read_report(str(CPU_REPORT))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_this_cpu_s_layers_are_the_stored_ones(stored, precision):
    found = {name: check_ascend.digest(result) for name, result in layers(precision)}
    report = {"results": {precision: found}}
    assert len(found) > 10 and found.keys() <= stored["results"]["fp32"].keys()
    assert differences(report, stored) == []
    errors = [value["error"] for value in found.values()]
    assert max(errors) < (1e-5 if precision == "fp32" else 1e-2)


def test_a_difference_is_found_by_its_name(stored):
    changed = copy.deepcopy(stored)
    changed["results"]["fp32"]["silu"]["some"][3] += 1
    changed["results"]["fp16"]["unet"]["some"][0] = float("nan")
    assert [line.partition(" differs")[0] for line in differences(changed, stored)] == ["silu in fp32", "unet in fp16"]


def test_a_digest_is_spread_over_the_result():
    digest = check_ascend.digest(np.arange(1000.0).reshape(10, 100))
    assert digest["largest"] == 999 and len(digest["some"]) == KEPT
    assert digest["some"][0] == 0 and digest["some"][-1] == 999


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
