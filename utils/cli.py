"""What every script does around its work: options, settings files, errors of the user in one line, and results that
have their names only when they are complete."""
import argparse
import contextlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from utils import options
from utils.inputs import UserError, describe, no_room
from utils.options import Number, boolean, filled
from utils.processes import is_main_process

DEFAULT_MODEL, DEFAULT_PRETRAINED = "ViT-H-14", "laion2b_s32b_b79k"
UNKEPT = ("resume", "output_dir", "device", "num_workers", "config", "debug")  # options that a manifest does not keep


def note(text: str) -> None:
    """Say something once, on stderr, whatever the number of processes."""
    if is_main_process():
        print(f"note: {text}", file=sys.stderr)


def loading(model: str, pretrained: str | None = None) -> None:
    """Say at once, on stderr, which model is loaded: it takes seconds before there is more to say."""
    if is_main_process():
        print(f"loading {model}{f' ({pretrained})' if pretrained else ''} ...", file=sys.stderr, flush=True)


# The ranges of all options. What takes memory, processes or disk has an end that no machine needs to go beyond.
NATURAL, POSITIVE, SEED = Number(int, 0), Number(int, 1), Number(int, 0, 2 ** 32 - 1)
FRACTION, RATE, WEIGHT = Number(float, 0, 1), Number(float, 0, above=True), Number(float, 0)
SIZE = Number(int, 1, 10_000)  # of a batch, and of all else whose parts are in memory together
PIXELS, THUMBNAIL, COLUMNS = Number(int, 1, 2048), Number(int, 1, 1024), Number(int, 1, 40)
STEPS, CONNECTIONS, RANK = Number(int, 1, 100_000), Number(int, 1, 256), Number(int, 1, 1024)


def check_range(option: str, value: int, most: int, least: int = 1) -> None:
    """Raises UserError for a value that is out of a range that only the data tells."""
    if not least <= value <= most:
        raise UserError(f"{option} is {value}; choose from {least} to {most}")


def fit(parser: argparse.ArgumentParser, args: argparse.Namespace, name: str, most: int, least: int = 1) -> None:
    """`check_range` of an option; a default that is too large becomes the most that there is, and a line says so."""
    value = getattr(args, name)
    if value == parser.get_default(name) and value > most >= least:
        print(f"--{name} is {most}, all that there are, in place of its default {value}", file=sys.stderr)
        setattr(args, name, most)
    check_range(f"--{name}", getattr(args, name), most, least)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Shows a script's docstring as it is, and every default and range."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, span = action.help, f"{action.type}; " if isinstance(action.type, Number) else ""
        if action.default is argparse.SUPPRESS or action.required:
            return text + " (required)" * action.required
        if "(default: " not in text:
            default = "off" if action.default is False else "none" if action.default is None else "%(default)s"
            text += f" (default: {default})"
        return text.replace("(default: ", f"({span}default: ", 1)


def make_parser(documentation: str, make: Callable = argparse.ArgumentParser) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring, with the options that all scripts share; `make` is another of
    argparse's constructors where it is that of a subcommand."""
    parser = make(description=documentation, formatter_class=_Help)
    parser.error = _raise  # one line, like every other error
    parser.register("type", None, filled)
    parser.add_argument("--config", metavar="FILE.yaml",
                        help="settings file: 'option: value' lines that become defaults")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _raise(message: str) -> None:
    message = message.removeprefix("argument ").replace(": is ", " is ", 1)  # types say what a value is
    raise UserError(f"{message}; see --help")


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line over the defaults of `--config`.

    Values of the file go through the same types and choices as the command line's; where an option takes several, the
    file may hold a list or a single one. Raises UserError for an unknown key or an unreadable file.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    known = argparse.ArgumentParser(add_help=False)
    known.add_argument("--config")
    path, chosen = known.parse_known_args(arguments)[0].config, _subcommand(parser, arguments)
    actions = {action.dest: action for action in chosen._actions if action.dest not in ("help", "config")}
    if path:
        for line, name, node in options.read_settings(path):
            if name not in actions:
                raise UserError(f"{path}, line {line}: unknown option {name}; known are {', '.join(sorted(actions))}")
            try:
                value = options.setting(actions[name], node)
            except (ValueError, argparse.ArgumentTypeError) as error:
                raise UserError(f"{path}, line {line}: {name} {error}") from error
            if value is not None:  # an empty line keeps the default
                chosen.set_defaults(**{name: value})
                actions[name].required = False
    args = parser.parse_args(arguments)
    for name, action in actions.items():
        options.check_path(action, getattr(args, name, None))
    return args


def _subcommand(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.ArgumentParser:
    """The parser of the subcommand that the arguments name; of a script without any, its own."""
    commands = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return next((choices[word] for choices in commands for word in arguments if word in choices), parser)


# Groups of options that several scripts share

def add_model_options(parser: argparse.ArgumentParser, default: str = DEFAULT_MODEL) -> None:
    """The options that choose a model."""
    parser.add_argument("--model", default=default, metavar="NAME",
                        help="open_clip name, hf-hub:NAME, local-dir:FOLDER or emojiclip; hub name or folder of "
                             "transformers (openai/clip-vit-base-patch32, hf:FOLDER); or timm:NAME where no texts are "
                             "needed")
    parser.add_argument("--pretrained", metavar="TAG",
                        help="weights: a tag of open_clip or timm, a checkpoint file, or 'none' for random weights "
                             "from --seed; not with a folder or hub name (default: "
                             f"{DEFAULT_PRETRAINED} for {DEFAULT_MODEL})")
    add_device(parser)
    parser.add_argument("--seed", type=SEED, default=0, help="seed of random weights")


def add_model_settings(parser: argparse.ArgumentParser) -> None:
    """The options that say how the weights of a model were trained, where nothing else does."""
    of = "that the weights were trained with (default: as their tag, or the open_clip_config.json beside them, says)"
    parser.add_argument("--mean", type=FRACTION, nargs=3, metavar=("R", "G", "B"), help=f"mean of images {of}")
    parser.add_argument("--std", type=RATE, nargs=3, metavar=("R", "G", "B"), help=f"their deviation, {of}")
    parser.add_argument("--interpolation", choices=("bicubic", "bilinear"), help=f"resizing {of}")
    parser.add_argument("--quick_gelu", type=boolean, metavar="True|False",
                        help=f"whether quick-GELU is the activation {of}")


def model_settings(args: argparse.Namespace) -> dict:
    """The settings of a model that were given by these options."""
    names = ("mean", "std", "interpolation", "quick_gelu")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def add_device(parser: argparse.ArgumentParser, of: str = "") -> None:
    """The device; `of` says for what, where a script does not need it for all it does."""
    parser.add_argument("--device", help=f"{of}torch device, such as cuda:0 or cpu (default: the best there is)")


def add_reload_options(parser: argparse.ArgumentParser, of: str = "", seed: str = "of random weights") -> None:
    """The options that load the model of a run again; `of` says for what, and `seed` what else is drawn at random."""
    parser.add_argument("--pretrained", metavar="TAG",
                        help=f"{of}weights, as given to compute_prs.py; not for mapped models (default: none)")
    add_device(parser, of)
    parser.add_argument("--seed", type=SEED, default=0, help=f"seed {seed}")


def add_data_options(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """The options that choose one of the data sets of these names."""
    parser.add_argument("--dataset", default="imagenet", choices=names, metavar="NAME",
                        help=f"one of {', '.join(names)}")
    parser.add_argument("--data_path", metavar="FOLDER",
                        help="where the images are; the emoji sets need none (default: none)")


def add_split_option(parser: argparse.ArgumentParser) -> None:
    """The option that chooses a split."""
    parser.add_argument("--split", type=str, metavar="NAME",
                        help="train, val or test, where the data set has it (default: test; val of imagenet, all of an "
                             "imagefolder)")


def add_run_options(parser: argparse.ArgumentParser, names: Sequence[str], model: str | None = DEFAULT_MODEL,
                    dataset: str = "imagenet") -> None:
    """The options by which a script finds the arrays of a run, of one of the data sets of these `names`; `model` is the
    default, or None where the script has a --model of its own."""
    if model:
        parser.add_argument("--model", default=model, metavar="NAME", help="as given to compute_prs.py")
    parser.add_argument("--dataset", default=dataset, choices=names, metavar="NAME", help="as given to compute_prs.py")
    add_split_option(parser)
    add_input_dir(parser)


def add_input_dir(parser: argparse.ArgumentParser) -> None:
    """Where the arrays of runs are."""
    parser.add_argument("--input_dir", default="./output_dir", metavar="FOLDER", help="where the arrays are")


def add_output_dir(parser: argparse.ArgumentParser, what: str, beside_input: bool = False) -> None:
    """Where results go: `what` they are, and whether they go where the arrays are unless the user says otherwise."""
    parser.add_argument("--output_dir", default=None if beside_input else "./output_dir", metavar="FOLDER",
                        help=f"where {what}" + (" (default: --input_dir)" if beside_input else ""))


def add_texts_of_heads_options(parser: argparse.ArgumentParser, pool: str = "image_descriptions_general") -> None:
    """The options by which a script finds what compute_complete_text_set.py wrote."""
    parser.add_argument("--text_descriptions", default=pool, metavar="POOL",
                        help="as given to compute_complete_text_set.py")
    parser.add_argument("--texts_per_head", type=POSITIVE, default=10, help="as given there")


def add_source_model(parser: argparse.ArgumentParser, when: str) -> None:
    """The model whose components a mapped run holds; `when` it is read."""
    parser.add_argument("--source_model", metavar="NAME",
                        help=f"{when}: the model whose components were mapped, as given to compute_prs.py (default: "
                             "as the manifest of the run says)")


def add_register_options(parser: argparse.ArgumentParser, folder: str = "--output_dir") -> None:
    """The options that give a model test-time registers, whose neurons are looked up in `folder`."""
    parser.add_argument("--registers", type=Number(int, 0, 1024), default=0, metavar="N",
                        help="register tokens, which take outlying norms off the patches (docs/artefacts.md)")
    parser.add_argument("--artefacts", metavar="FILE.json",
                        help="the file of compute_artefacts.py that names register neurons (default: the one in "
                             f"{folder})")


def add_vlm_options(parser: argparse.ArgumentParser, option: str = "--vlm_name",
                    default: str | None = "r-open-clip:emojiclip") -> None:
    """The options that choose a vision-language model as a judge."""
    parser.add_argument(option, default=default, metavar="NAME",
                        help="the VLM: a hub name or folder of transformers (CLIP, ALIGN, SigLIP), or r-open-clip: and "
                             "one of MODEL:DATASET, hf-hub:NAME, local-dir:PATH, emojiclip"
                             + ("" if default else " (default: none)"))
    parser.add_argument("--vlm_16bit", type=boolean, metavar="True|False",
                        help="run the VLM in 16 bits: float16 on a GPU, bfloat16 on a CPU (default: True on a GPU, "
                             "but for ALIGN)")


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """The options that choose a chat server and its language model."""
    parser.add_argument("--base_url", metavar="URL",
                        help="OpenAI-compatible server, such as http://localhost:8000/v1 (default: OpenAI's own)")
    parser.add_argument("--language_model", metavar="NAME",
                        help="language model of that server, such as OpenAI's gpt-5.4-mini")


def add_concept_options(parser: argparse.ArgumentParser, names: Sequence[str], option: str = "--dataset_name") -> None:
    """The options that choose concepts and their images; `option` names one of the data sets `names`."""
    parser.add_argument(option, default="emoji", choices=names, metavar="NAME",
                        help=f"whose classes are the concepts: one of {', '.join(names)}")
    parser.add_argument("--data_root", metavar="FOLDER",
                        help="where the images are; emoji and emoji_fixed need none (default: none)")
    parser.add_argument("--split", default="train", metavar="NAME",
                        help="split of the data set: train, val, trainval or test, where it has them")
    parser.add_argument("--class_names", metavar="FILE",
                        help="names of all concepts, one a line or a JSON list, in the order of the data set's labels "
                             "(default: the data set's own, as published)")
    parser.add_argument("--num_concepts", type=POSITIVE, metavar="N",
                        help="so many concepts, evenly spaced over the data set's list (default: all)")
    parser.add_argument("--num_images_for_reward", type=SIZE, default=256, metavar="N",
                        help="images of a concept, at most, the first by file name")


# Running

def run(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Run a script: exit code 2 and one line `error: ...` for what the user can mend, a full memory or disk too, 130
    when interrupted, and 143 when told to end (SIGTERM), which stops it as cleanly."""
    debug, ended = "--debug" in sys.argv, []

    def end(*_) -> None:
        ended.append(True)
        raise KeyboardInterrupt

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    before = signal.signal(signal.SIGTERM, end)
    try:
        main(parse(parser))
    except (UserError, OSError) as error:
        if debug:
            raise
        print(f"error: {describe(error)}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        full = no_room(error)
        if debug or full is None:
            raise
        print(f"error: {full}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if debug:
            raise
        print(f"error: {'told to end' if ended else 'interrupted'}; nothing incomplete was left under its final name",
              file=sys.stderr)
        sys.exit(143 if ended else 130)
    finally:
        signal.signal(signal.SIGTERM, before)


# Results

def counted(number: int, one: str, several: str = "") -> str:
    """A number and what it counts: 1 text, 2 texts."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def some(names: Sequence[str], most: int = 5) -> str:
    """The first of many names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def command(script: str, parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """The command of a script, a file, as a manifest keeps it: with the options that are not at their defaults, but for
    those that do not change what is made."""
    words = ["python", Path(script).name]
    for action in parser._actions:
        value = getattr(args, action.dest, action.default)
        if action.dest not in UNKEPT and value != action.default:
            values = [] if action.nargs == 0 else value if isinstance(value, list) else [value]
            words += [action.option_strings[-1], *map(str, values)]
    return shlex.join(words)


@contextlib.contextmanager
def complete(path: Path) -> Iterator[Path]:
    """A path to write to, beside `path`, in a folder that is made: what stands there gets its name when it is complete,
    and is removed where it is not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_texts(contents: dict[Path, str]) -> None:
    """Write texts that belong together; no file has its name before all are complete, and the first gets it last."""
    with contextlib.ExitStack() as names:
        for path, content in contents.items():
            partial = names.enter_context(complete(path))
            partial.write_text(content, encoding="utf-8", errors="backslashreplace")  # names of files may be any bytes


def write_text(path: Path, content: str) -> None:
    """Write text; the file has its name only when it is complete."""
    write_texts({path: content})


def as_json(result: dict | list) -> str:
    """A result as the JSON of its file."""
    return json.dumps(result, indent=1, ensure_ascii=False) + "\n"


def save_result(path: Path, result: dict) -> None:
    """Write a result as JSON; the file has its name only when it is complete."""
    write_text(path, as_json(result))
