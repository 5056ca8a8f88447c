"""The `nondiff` command.

Exit codes: 0 it worked; 1 the experiment failed; 2 the command line is wrong; 130 Ctrl-C.
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; `arguments` default to those of the process. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="nondiff",
        usage="nondiff [-h] [--version] COMMAND ...",
        description="Train models that backpropagation alone cannot train.",
        epilog="`nondiff run FILE --help` lists the flags of an experiment.",
    )
    parser.add_argument("--version", action="version", version=f"nondiff {_version()}")
    parser.add_argument("command", choices=["run"], metavar="COMMAND", help="run: train as a Python file says")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)

    from nondiff.launch.run import run  # only now: `--help` needs none of it

    return run(options.rest)


def _version() -> str:
    try:
        return importlib.metadata.version("nondiff")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed, so without a version)"


if __name__ == "__main__":
    sys.exit(main())
