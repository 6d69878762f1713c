"""The command line, `jaxcam COMMAND`: one file for each kind of command, with argument parsing and printing only.

Bad input ends with one line on stderr and exit code 2. What a command needs is imported once its arguments are parsed,
so that `--help` and a mistyped option wait for nothing.
"""

import argparse

from jaxcam.cli import _completion, app, compare, dataset, explain, export, listings
from jaxcam.cli._common import complain


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(f"{message} (see {self.prog} --help)")


class _Version(argparse.Action):
    def __call__(self, parser, *_):
        print(listings.versions())
        parser.exit()


class _Completion(argparse.Action):
    def __call__(self, parser, _, shell, *__):
        print(_completion.script(parser, shell))
        parser.exit()


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = _Parser(prog="jaxcam", description="Explain vision models in JAX.")
    parser.add_argument("--version", nargs=0, action=_Version, help="versions and devices, for a bug report")
    completion = "a program that completes commands and names on Tab: bash, zsh, fish, tcsh or powershell"
    parser.add_argument("--completion", action=_Completion, metavar="SHELL", help=completion)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for each in (explain, dataset, compare, app, export, listings):
        each.add(commands)
    try:
        args = parser.parse_args(argv)
        args.run(args)
    except (ValueError, OSError, MemoryError) as error:
        complain(str(error))
        return 2
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    return 0
