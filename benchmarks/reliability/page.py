"""Puts the tables of docs/results/reliability_*.json into docs/reliability.md.

python benchmarks/reliability/page.py [--measure]

A table stands behind the comment that names its file. With --measure every file is first measured again, by the command
that it names: all that is here, in about an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import results

DOCS = Path(__file__).resolve().parents[2] / "docs"


def files() -> list[Path]:
    """The results of this folder's scripts."""
    return sorted((DOCS / "results").glob("reliability_*.json"))


def measure() -> list[str]:
    """Runs the commands of all files, one after the other; those that found something wrong."""
    commands = [json.loads(path.read_text())["command"] for path in files()]
    runs = [subprocess.run([sys.executable, *shlex.split(command)[1:]], cwd=DOCS.parent) for command in commands]
    return [command for command, run in zip(commands, runs, strict=True) if run.returncode]


def filled(page: str) -> str:
    """The page with the tables of the files."""
    for path in files():
        found, mark = json.loads(path.read_text()), f"<!-- {path.name} -->\n"
        if mark in page:
            before, _, after = page.partition(mark)
            after = re.sub(r"\A\n(\|.*\n)*\n?", "", after)
            page = f"{before}{mark}\n{results.table(found)}" + (f"\n{after}" if after else "")
    return page


def main() -> None:
    """Fills the page; exit status 1 if a script found something wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="runs all scripts first")
    wrong = measure() if parser.parse_args().measure else []
    path = DOCS / "reliability.md"
    path.write_text(filled(path.read_text()))
    for command in wrong:
        print(f"Something is wrong: {command}", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
