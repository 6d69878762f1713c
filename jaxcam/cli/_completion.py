"""What a shell needs to complete `jaxcam`: commands, options, and the names of methods, metrics, models and files."""

import argparse


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The program by which a shell completes all of a parser's commands; nothing of jaxcam runs on Tab.

    Raises:
      ValueError: there is nothing for this shell.
    """
    import shtab

    from jaxcam._errors import unknown
    from jaxcam.attribution import METHODS
    from jaxcam.metrics import METRICS
    from jaxcam.models import ARCHITECTURES, models

    if shell not in shtab.SUPPORTED_SHELLS:
        raise unknown("shell", shell, shtab.SUPPORTED_SHELLS)
    names = {"method": METHODS, "methods": METHODS, "metrics": METRICS, "architecture": ARCHITECTURES}
    names["model"] = (*models(), *shtab.Optional.FILE)
    files = {"IMAGE": shtab.FILE, "SOURCE": shtab.FILE, "FILE": shtab.FILE, "DIR": shtab.DIRECTORY}
    [commands] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for command in commands.choices.values():
        for action in command._actions:
            if action.dest in names:
                action.choices = tuple(names[action.dest])
            elif action.metavar in files:
                action.complete = files[action.metavar]
    return shtab.complete(parser, shell)
