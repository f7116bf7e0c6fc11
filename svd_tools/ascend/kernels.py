"""What MindSpore's Ascend backend made of a program: the kernels of its compiled graphs, from its own log and dumps.

The dumps are text: a line per operator, and below it the types and shapes that the kernel gets, its name, and the lines
of Python that it comes from. The log says of each type of operator whether its kernel is CANN's newer kind (`aclnn`),
the older one that CANN compiles on the card's host for each shape (`aclop`), or none of the card's (`host`).
"""

import re
import sysconfig
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Tuple

Shape = Tuple[int, ...]
ENVIRONMENT = {  # one dump per graph, the last one; the log of the device's part alone, to standard error
    "MS_DEV_SAVE_GRAPHS": "1",
    "MS_DEV_DUMP_IR_PASSES": "graph_build",
    "GLOG_v": "2",
    "MS_SUBMODULE_LOG_v": "{DEVICE:1}",
    "GLOG_logtostderr": "1",
}
DUMPS = "MS_DEV_SAVE_GRAPHS_PATH"
OPERATOR = re.compile(r"  (?:%\w+\([^)]*\) = )?(?:PrimFunc_)?(\w+)\((.*)\) (?:\{|primitive_attrs)")
TENSOR = re.compile(r"<(\w+?)x\w+\[const vector\]\{([\d, ]*)\}>")
FORMAT = re.compile(r"<\w+?x\w+\[const vector\]")
PLACE = re.compile(r"# In file (.+?):(\d+)")
SCOPE = "      # Fullname with scope: ("
KIND = re.compile(r"CollectOpSelectedType\] (\w+) select (\w+) kernel")
PEAK = re.compile(r"(?:Used|Actual) peak memory usage \((without|with) fragments\): (\d+)M")
AROUND = 3  # kernels before and after
INSTALLED = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))  # where packages lie
NOT_LAUNCHED = ("Reshape", "ExpandDims", "Squeeze", "Flatten")  # the same memory in another shape


class Operand(NamedTuple):
    """A tensor, or a number that belongs to the operator (of shape ())."""

    dtype: str  # as in Float16
    shape: Shape


class Kernel(NamedTuple):
    """One operator of a compiled graph."""

    name: str
    kind: str  # aclnn, aclop, host, … ; empty where nothing was selected
    inputs: List[Operand]
    outputs: List[Operand]
    arguments: str  # as the dump has them, with the numbers' values
    places: List[str]  # "file:line", the network's own last
    scope: str  # of the network's cells
    near: Tuple[str, ...] = ()  # places of the kernels around it, since MindSpore does not tell every one's

    def place(self, project: Path) -> str:
        """The innermost line of the project that it comes from, or one near it.

        A virtual environment's packages are not the project's, also where it lies inside of it.
        """
        for places, word in ((self.places, ""), (self.near, "near ")):
            own = [place for place in places if place.startswith(f"{project}/") and not place.startswith(INSTALLED)]
            if own:
                return word + own[-1][len(str(project)) + 1 :]
        return self.scope


def read_kernels(dumps: Path, log: str) -> List[Kernel]:
    """The kernels of all graphs that were dumped into a folder, and those of operators that ran one by one.

    Of the latter only those are seen that are not MindSpore's new kind, whose kernels are all `aclnn`.
    """
    kinds = dict(KIND.findall(log))
    graphs = sorted(dumps.rglob("graph_build*.ir"))
    found = list(_with_neighbours([kernel for path in graphs for kernel in _of_graph(path, kinds)]))
    alone = kinds.keys() - {kernel.name for kernel in found}
    return found + [Kernel(name, kinds[name], [], [], "", [], "outside of graphs") for name in sorted(alone)]


def launched(kernels: List[Kernel]) -> List[Kernel]:
    """Those that the card is given to run."""
    return [kernel for kernel in kernels if kernel.kind != "host" and kernel.name not in NOT_LAUNCHED]


def planned_memory(log: str) -> Dict[str, float]:
    """Peaks of the memory that MindSpore planned, "without" and "with" fragments, in 10⁹ bytes."""
    peaks = {"without": 0.0, "with": 0.0}
    for which, megabytes in PEAK.findall(log):
        peaks[which] = max(peaks[which], int(megabytes) * 2**20 / 1e9)
    return peaks


def _with_neighbours(kernels: List[Kernel]) -> Iterator[Kernel]:
    """Each with the places of the kernels around it, the one before it last."""
    for index, kernel in enumerate(kernels):
        around = kernels[index + 1 : index + 1 + AROUND] + kernels[max(0, index - AROUND) : index]
        yield kernel._replace(near=tuple(place for other in around for place in other.places))


def _of_graph(path: Path, kinds: Dict[str, str]) -> Iterator[Kernel]:
    name, arguments, scope, operands, places = "", "", "", [], []
    for line in [*path.read_text(errors="replace").splitlines(), "  Return() primitive_attrs"]:
        operator = OPERATOR.match(line)
        if operator:
            if operands or name == "PyExecute":
                inputs, outputs = operands or ([], [])
                yield Kernel(name, kinds.get(name, ""), inputs, outputs, arguments, places, scope)
            name, arguments, operands, places = operator.group(1), operator.group(2), [], []
        elif line.startswith("      : (<") and FORMAT.search(line):
            operands = [_operands(side) for side in line.rpartition(" -> ")[::2]]
        elif line.startswith(SCOPE):
            scope = line[len(SCOPE) : -1]
        elif "# In file " in line:
            places += [f"{file}:{number}" for file, number in PLACE.findall(line)]


def _operands(text: str) -> List[Operand]:
    return [Operand(dtype, tuple(map(int, filter(None, sizes.split(", "))))) for dtype, sizes in TENSOR.findall(text)]
