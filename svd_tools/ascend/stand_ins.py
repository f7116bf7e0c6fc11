"""Empty stand-ins for CANN's libraries: with them MindSpore's own Ascend backend runs without a card, as a dry run.

MindSpore's wheel for Linux holds that whole backend. It links to CANN, and looks up CANN's functions by their names;
here each of these names, read from the installed wheel, is a function that returns 0. With `MS_SIMULATION_LEVEL=1` a
program whose device is Ascend is compiled, its kernels are chosen and its memory is planned; all results are zeros.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Dict, List, Set

from gm.errors import UserError

SOURCE = Path(__file__).with_name("stand_ins.cc")
PLUGINS = ("libmindspore_ascend.so.2", "libmindspore_ops_ascend.so", "ascend/**/*.so")  # of the wheel's lib/plugin
# Libraries that are asked for functions by name, and those that only have to be there.
ASKED = ("libascendcl.so", "libopapi.so", "libcust_opapi.so", "libacl_op_compiler.so", "libacl_tdt_channel.so",
         "libmsprofiler.so")  # fmt: skip
NAMED = (
    "acl_dvpp_mpi", "acl_dvpp_op", "aoe_executor", "ascend_hal", "c_sec", "cann_kb", "compress", "error_manager",
    "ge_runner", "graph", "hccl", "host_cpu_engine", "nnopbase", "opskernel", "platform", "runtime", "slice",
)  # fmt: skip
LINKED = re.compile(r"_ZNK?2ge\w+|_ZT\w*2ge\w+|(acl|Hccl|rt|hal)\w+")
LOOKED_UP = re.compile(  # as strings between zeros
    rb"\0((?:acl[a-z]*[A-Z]|Hccl[A-Z]|rt[A-Z]|hal[A-Z]|PTA|SetPTA|CanUsePTA|HugeMem|ReleaseHugeMem|UnInit(?:PTA|Huge)|"
    rb"AddTensorAddr)\w*)(?=\0)"
)
TWO_STEPS = "GetWorkspaceSize"  # every aclnn function has a second one of this name, put together at run time
UNDO = "Un"  # a linker keeps the name of what is undone as the end of this one
FUNCTION = "__attribute__((weak)) long {0}(void) {{ return 0; }}\n"
PYTHON = {  # CANN's packages that MindSpore imports on Ascend
    "hccl/__init__.py": "",
    "hccl/sys_version.py": '__sys_version__ = "8.5"\n',
    "hccl/manage/__init__.py": "",
    "hccl/manage/api.py": "def initialize(*_):\n    return 0\n",
}


def build(folder: Path) -> Dict[str, str]:
    """Makes the stand-ins in a folder.

    Returns:
        The environment variables with which a process of this machine runs on them.

    Raises:
        UserError: no compiler, or a wheel without the Ascend backend.
    """
    plugins = _plugins()
    libraries = folder / "cann" / "lib64"
    (libraries / "driver").mkdir(parents=True, exist_ok=True)
    functions = folder / "functions.c"
    functions.write_text("".join(map(FUNCTION.format, sorted(function_names(plugins)))))
    first = libraries / ASKED[0]
    objects = [folder / "functions.o", folder / "classes.o"]
    _compile("gcc", "-w", "-fno-builtin", "-fPIC", "-c", functions, "-o", objects[0])
    _compile("g++", "-D_GLIBCXX_USE_CXX11_ABI=0", "-fPIC", "-c", SOURCE, "-o", objects[1])  # the wheel's ABI
    _compile("g++", "-shared", "-o", first, *objects, f"-Wl,-soname,{first.name}")
    for name in ASKED[1:]:
        shutil.copy(first, libraries / name)
    empty = libraries / "driver" / "libascend_hal.so"
    _compile("gcc", "-shared", "-o", empty, "-x", "c", os.devnull)
    for name in NAMED:
        shutil.copy(empty, libraries / f"lib{name}.so")
    for name, text in PYTHON.items():
        path = folder / "python" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {
        "LD_LIBRARY_PATH": _before("LD_LIBRARY_PATH", libraries),
        "PYTHONPATH": _before("PYTHONPATH", folder / "python"),
        "ASCEND_HOME_PATH": str(libraries.parent),
        "MS_SIMULATION_LEVEL": "1",
    }


def function_names(plugins: List[Path]) -> Set[str]:
    """All of CANN's functions that the libraries link to or look up."""
    names = set()
    for plugin in plugins:
        symbols = _compile("nm", "--dynamic", "--format=posix", "--undefined-only", plugin)
        linked = {line.split()[0].partition("@")[0] for line in symbols.splitlines()}
        names |= {name for name in linked if LINKED.fullmatch(name)}
        names |= {name.decode() for name in LOOKED_UP.findall(plugin.read_bytes())}
    names |= {name[len(UNDO) :] for name in names if name.startswith(UNDO)}
    return names | {name + TWO_STEPS for name in names if name.startswith("aclnn")}


def _plugins() -> List[Path]:
    spec = importlib.util.find_spec("mindspore")
    plugins = Path(spec.origin).parent / "lib" / "plugin" if spec else Path()
    found = [path for pattern in PLUGINS for path in sorted(plugins.glob(pattern))]
    if not any(path.name == PLUGINS[0] for path in found):
        raise UserError("the installed MindSpore has no Ascend backend to run dry; install a Linux wheel from PyPI")
    return found


def _compile(*command: object) -> str:
    try:
        return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
    except FileNotFoundError as error:
        raise UserError(f"the dry run needs gcc, g++ and nm; {command[0]} is not there") from error


def _before(variable: str, path: Path) -> str:
    return os.pathsep.join([str(path), *filter(None, [os.environ.get(variable)])])
