"""What every script does around its work: options, settings files, errors of the user in one line."""
import argparse
import os
import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. The message says what is wrong and what to do."""


def make_parser(documentation: str) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring, with the options that all scripts share."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = _raise  # one line, like every other error
    parser.add_argument("--config", metavar="FILE.yaml", help="settings file: 'option: value' lines that become defaults")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error (default: off)")
    return parser


def _raise(message: str) -> None:
    raise UserError(f"{message}; see --help")


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line over the defaults of `--config`.

    Values of the file go through the same types and choices as the command line's.
    Raises UserError for an unknown key or an unreadable file.
    """
    known = argparse.ArgumentParser(add_help=False)
    known.add_argument("--config")
    path = known.parse_known_args(arguments)[0].config
    if path:
        settings = read_yaml(path)
        actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
        unknown = sorted(set(settings) - set(actions))
        if unknown:
            raise UserError(f"{path}: unknown option {', '.join(unknown)}; known are {', '.join(sorted(actions))}")
        for name, value in settings.items():
            action = actions[name]
            if isinstance(value, str) and action.type:
                try:
                    value = action.type(value)
                except (ValueError, argparse.ArgumentTypeError) as error:
                    raise UserError(f"{path}: {name} cannot be {value!r}") from error
            if action.choices and value not in action.choices:
                raise UserError(f"{path}: {name} is {value!r}; choose from {', '.join(map(str, action.choices))}")
            parser.set_defaults(**{name: value})
            action.required = False
    return parser.parse_args(arguments)


def boolean(text: str | bool) -> bool:
    """The value of an option that is given as True or False."""
    if str(text).lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return str(text).lower() == "true"


def check_positive(args: argparse.Namespace, *names: str) -> None:
    """Raises UserError for an option among `names` that is below 1."""
    for name in names:
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}; it must be at least 1")


def read_yaml(path: str) -> dict:
    """A YAML file that holds a mapping."""
    import yaml

    try:
        with open(path) as file:
            content = yaml.safe_load(file) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: should hold 'option: value' lines")
    return content


def run(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Run a script: exit code 2 and one line `error: ...` for what the user can mend, 130 when interrupted, and 143 when
    told to end (SIGTERM), which stops it as cleanly."""
    debug, told = "--debug" in sys.argv, []

    def end(*_) -> None:
        told.append(True)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        main(parse(parser))
    except (UserError, OSError) as error:
        if debug:
            raise
        print(f"error: {describe(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if debug:
            raise
        print(f"error: {'told to end' if told else 'interrupted'}; nothing incomplete was left under its final name",
              file=sys.stderr)
        sys.exit(143 if told else 130)
    finally:
        signal.signal(signal.SIGTERM, before)


def describe(error: Exception) -> str:
    """An error in one line; those of the operating system with the file they are about."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{os.fspath(error.filename)}: " if error.filename else ""
        return f"{place}{error.strerror}; free some space or choose another --output_dir" \
            if error.errno in (28, 122) else f"{place}{error.strerror}"
    return " ".join(str(error).split())


def pick_device(name: str | None):
    """The torch device of that name, or the best there is. Raises UserError where it cannot be used."""
    import torch

    torch.backends.fp32_precision = "ieee"  # convolutions would use TF32 on a GPU, and miss the 1e-5 asked of terms
    if name is None:
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here ({str(error).splitlines()[0]}); "
                        f"leave --device out to take the best there is") from error
    return device
