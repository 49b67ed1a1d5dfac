"""Commands: ``python -m robust_jax prepare NAME``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from robust_jax.data import originals, prepare


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; a mistake is one message, and 1."""
    parser = argparse.ArgumentParser(prog="python -m robust_jax")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("prepare", help="prepares a dataset from its original files, which it may download")
    one.add_argument("name", help=f"one of {', '.join(originals.ORIGINALS)}")
    one.add_argument(
        "--from", nargs="+", default=(), dest="source", metavar="FILE", help="the original files, or a folder of them"
    )
    one.add_argument("--data_dir", default=None, help="of prepared datasets; default: that of TFDS")
    one.add_argument("--unverified", action="store_true", help="takes files with another checksum than the published")
    given = parser.parse_args(arguments)
    try:
        prepare.prepare(given.name, given.source, given.data_dir, unverified=given.unverified)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
