"""Every operator that the networks use is documented for Ascend, and for the CPU as well, where there is no card.

That its kernels are what a card should have shows the dry run (tests/svd_tools/test_ascend_dry_run.py); here the
"Supported Platforms" section of each operator's own documentation, in the installed MindSpore, is read. Operators come
from the sources: attributes of `mindspore.ops`, `mint` and `nn`, and methods called in functions that take a `Tensor`.
"""

import ast
import inspect
import re
from functools import reduce
from pathlib import Path

import mindspore
import pytest
from mindspore import Tensor

PROJECT = Path(__file__).parents[1]
SOURCES = sorted([*PROJECT.glob("gm/**/*.py"), *PROJECT.glob("modules/**/*.py")])
OPERATOR_MODULES = ("mindspore.ops.", "mindspore.mint.", "mindspore.nn.")
ASCEND_S = PROJECT / "gm/backend/ascend.py"  # whose operators need no kernel on CPU
# Between processes: documented for Ascend and GPU, and working on the CPU all the same (training's tests run them).
COMMUNICATION = {"mindspore.nn.DistributedGradReducer", "mindspore.ops.AllGather", "mindspore.ops.Broadcast"}
# No kernels, so that no platform is documented: modules, changes of parameters on the host, constants of graphs, and
# functions that build functions.
HOST = re.compile(
    r"mindspore\.mint\.nn(\.functional)?|mindspore\.nn\.utils\..*|mindspore\.ops\.(GradOperation|constexpr)|"
    r"Tensor\.(asnumpy|item|set_dtype|size)"
)


def imported_names(tree):
    """What each imported name stands for, as a dotted path, of MindSpore's alone."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({a.asname or a.name: a.name for a in node.names if a.name.startswith("mindspore")})
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mindspore"):
            names.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
    return names


def dotted_path(node, names):
    """`ops.cat` -> "mindspore.ops.cat"; None if it is not MindSpore's."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in names:
        return None
    return ".".join([names[node.id], *reversed(parts)])


def operators(tree):
    """Dotted paths below `ops`, `mint` and `nn`."""
    names = imported_names(tree)
    paths = (dotted_path(node, names) for node in ast.walk(tree) if isinstance(node, (ast.Attribute, ast.Name)))
    return {path for path in paths if path and path.startswith(OPERATOR_MODULES)}


def tensor_methods(tree):
    """Methods of Tensor called in functions that have a parameter annotated as one."""
    names, found = imported_names(tree), set()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and any(takes_tensor(arg) for arg in function.args.args):
            calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
            methods = [call for call in calls if isinstance(call, ast.Attribute) and not dotted_path(call, names)]
            found |= {f"Tensor.{method.attr}" for method in methods if on_a_value(method)}
    return found


def takes_tensor(argument):
    return argument.annotation is not None and re.search(r"\bTensor\b", ast.unparse(argument.annotation))


def on_a_value(method):
    """Whether a called attribute is one of Tensor's and its owner no part of `self`, no module and no type."""
    owner = method.value
    if isinstance(owner, ast.Name) and owner.id in ("self", "np", "math", "kernels"):
        return False
    if isinstance(owner, ast.Call) and ast.unparse(owner.func) == "super":
        return False
    return hasattr(Tensor, method.attr)


def platforms(path):
    """The platforms that an operator's documentation names; of a method without any, its function's."""
    if path.startswith("Tensor."):
        name = path[len("Tensor.") :]
        return documented(getattr(Tensor, name)) or documented(getattr(mindspore.ops, name, None))
    return documented(reduce(getattr, path.split(".")[1:], mindspore))


def documented(operator):
    section = re.search(r"Supported Platforms:\s*\n(.*?)(?:\n\s*\n|$)", inspect.getdoc(operator) or "", re.DOTALL)
    return set(re.findall(r"\w+", section.group(1))) if section else set()


def used_operators(sources):
    found = set()
    for source in sources:
        tree = ast.parse(source.read_text(encoding="utf-8"))
        found |= operators(tree) | tensor_methods(tree)
    return sorted(path for path in found if not HOST.fullmatch(path))


@pytest.mark.parametrize("path", used_operators(set(SOURCES) - {ASCEND_S}))
def test_the_operator_is_documented_for_ascend_and_the_cpu(path):
    assert platforms(path) >= ({"Ascend"} if path in COMMUNICATION else {"Ascend", "CPU"})


@pytest.mark.parametrize("path", used_operators([ASCEND_S]))
def test_the_operator_is_documented_for_ascend(path):
    assert "Ascend" in platforms(path)


def test_the_scan_sees_operators_wherever_they_come_from():
    tree = ast.parse(
        "import mindspore as ms\nfrom mindspore import Tensor, ops\nfrom mindspore.ops import Conv2D as C\n"
        "def f(x: Tensor):\n    C(); ms.mint.permute(x, (0,)); ops.cat; x.reshape(1).squeeze(0); np.sum(x)\n"
        "def g(x: int, y: TensorSource):\n    x.argmax(); y.view()\n"
    )
    assert operators(tree) == {"mindspore.ops.Conv2D", "mindspore.mint.permute", "mindspore.ops.cat"}
    assert tensor_methods(tree) == {"Tensor.reshape", "Tensor.squeeze"}


def test_an_operator_for_ascend_alone_would_be_found():
    assert platforms("mindspore.ops.flash_attention_score") == {"Ascend"}
    assert platforms("mindspore.ops.cat") == {"Ascend", "GPU", "CPU"}
    assert platforms("mindspore.runtime.launch_blocking") == set()
