"""The `nondiff` command.

Exit codes: 0 it worked; 1 it failed; 2 the command line is wrong; 130 Ctrl-C; 143 SIGTERM.
"""

import argparse
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

from nondiff.launch.refusal import Refusal

COMMANDS = {
    "run": ("nondiff.launch.run:run", "train as a Python file says"),
    "resume": ("nondiff.launch.resume:resume", "go on with a run that ended early"),
    "list": ("nondiff.launch.list:list_runs", "the runs so far, the newest last"),
    "show": ("nondiff.launch.show:show_run", "all about one run"),
    "replay": ("nondiff.launch.replay:replay", "evaluate what failed on every worker, here"),
    "doctor": ("nondiff.launch.doctor:doctor", "what is installed, what is slow, what is promised here"),
}
"""Each command's function, imported only to run it, and a line of help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; `arguments` default to those of the process. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="nondiff",
        usage="nondiff [-h] [--version] COMMAND ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train models that backpropagation alone cannot train.\n\ncommands:\n"
        + "\n".join(f"  {name:<8}{line}" for name, (_, line) in COMMANDS.items()),
        epilog="`nondiff COMMAND --help` says more; `nondiff run FILE --help` lists the flags of an experiment.",
    )
    parser.add_argument("--version", action="version", version=f"nondiff {_version()}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    module, _, function = COMMANDS[options.command][0].partition(":")
    try:
        return getattr(importlib.import_module(module), function)(options.rest)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return refusal.code
    except KeyboardInterrupt:
        print(f"nondiff {options.command}: interrupted", file=sys.stderr)
        return 130


def _version() -> str:
    try:
        return importlib.metadata.version("nondiff")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed, so without a version)"


if __name__ == "__main__":
    sys.exit(main())
