"""An error line and what it lists elsewhere."""

import re
from pathlib import Path


def with_list(line: str) -> str:
    """The line, checked to be one and short, and below it what is in the file that it names, if it names one."""
    assert "\n" not in line and len(line) < 500, line
    listed = re.search(r"all (\d+) are listed in (\S+)$", line)
    if not listed:
        return line
    text = Path(listed[2]).read_text(encoding="utf-8")
    assert text.count("\n") == int(listed[1])
    return f"{line}\n{text}"
