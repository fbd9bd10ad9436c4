import re
import subprocess
import sys

import pytest
from builders import ROOT, SCRIPTS, load_script

from utils import cli
from utils.cli import UserError


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_teaches_and_answers_without_heavy_imports(name):
    how = ["-m", name] if "." in name else [f"{name}.py"]
    code = "import sys, runpy; sys.argv = sys.argv[1:]\ntry: runpy.{}\nexcept SystemExit: pass\n" \
           "print('HEAVY' if 'torch' in sys.modules else 'light')".format(
               f"run_module({name!r}, run_name='__main__')" if "." in name
               else f"run_path({how[0]!r}, run_name='__main__')")
    found = subprocess.run([sys.executable, "-c", code, name, "--help"], cwd=ROOT, capture_output=True, text=True,
                           timeout=60)
    assert found.stdout.rstrip().endswith("light"), found.stdout[-300:] + found.stderr
    command = rf"^ +(python ({name}\.py|-m {re.escape(name)})|bash {name.replace('.', '/')}\.sh)( |$)"
    assert re.search(command, found.stdout, re.MULTILINE), found.stdout
    assert "default: " in found.stdout


def test_the_list_of_scripts_is_whole():
    assert {"compute_prs", "inspect", "scripts.bench", "models.emojiclip.train", "data.emoji.write"} <= set(SCRIPTS)
    assert len(SCRIPTS) > 25


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_number_has_its_range(name):
    parsers = [load_script(name).get_args_parser()]
    for parser in parsers:
        for action in parser._actions:
            parsers += action.choices.values() if isinstance(action.choices, dict) else []
            assert action.type in (None, str, cli.boolean) or isinstance(action.type, cli.Number), action.option_strings
            if isinstance(action.type, cli.Number) and action.default is not None:
                for value in action.default if isinstance(action.default, list) else [action.default]:
                    assert action.type(str(value)) == value


def parser():
    p = cli.make_parser("doc")
    p.add_argument("--model", default="a")
    p.add_argument("--batch_size", type=cli.POSITIVE, default=2)
    p.add_argument("--lr", type=cli.RATE, default=0.1)
    p.add_argument("--share", type=cli.FRACTION, default=0.5, help="of all")
    p.add_argument("--index", type=cli.NATURAL, nargs="+")
    p.add_argument("--text", nargs="+")
    p.add_argument("--check", action="store_true", help="only look")
    p.add_argument("--half", type=cli.boolean)
    p.add_argument("--kind", choices=("x", "y"), default="x")
    return p


def test_a_settings_file_sets_defaults_and_the_command_line_wins(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("model: b\nbatch_size: 7\n")
    args = cli.parse(parser(), ["--config", str(path), "--batch_size", "9"])
    assert (args.model, args.batch_size, args.kind) == ("b", 9, "x")


@pytest.mark.parametrize("content, message", [
    ("modle: b", "s.yaml, line 1: unknown option modle; known are"), ("5: b", "unknown option 5"),
    ("model: b\n\nkind: x\nmodel: c", "s.yaml, line 4: repeats model of line 1"),
    ("kind: z", "kind is 'z'; choose from x, y"), ("- a", "option: value"), ("a: [", "cannot be read as YAML")])
def test_a_wrong_settings_file_is_refused(tmp_path, content, message):
    path = tmp_path / "s.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        cli.parse(parser(), ["--config", str(path)])


def test_errors_of_the_command_line_are_one_line():
    with pytest.raises(UserError, match="unrecognized arguments: --modle x; see --help"):
        cli.parse(parser(), ["--modle", "x"])


@pytest.mark.parametrize("option, value, message", [
    ("batch_size", "0", "is 0; it must be at least 1"), ("batch_size", "2.5", "is '2.5'; it must be a whole number"),
    ("lr", "0", "is 0; it must be above 0"), ("lr", "nan", "is nan; it must be above 0"),
    ("lr", "inf", "is inf; it must be above"), ("lr", "fast", "is 'fast'; it must be a number"),
    ("share", "1.1", "is 1.1; it must be from 0 to 1"),
    ("index", "-1", "is -1; it must be at least 0"), ("half", "maybe", "is 'maybe'; it must be True or False")])
def test_a_number_out_of_its_range_is_refused_wherever_it_is_given(tmp_path, option, value, message):
    with pytest.raises(UserError, match=re.escape(f"--{option} {message}")):
        cli.parse(parser(), [f"--{option}", value])
    path = tmp_path / "s.yaml"
    path.write_text(f"{option}: {value}\n")
    with pytest.raises(UserError, match=re.escape(f"s.yaml, line 1: {option} {message}")):
        cli.parse(parser(), ["--config", str(path)])


def test_a_range_has_its_ends_in_it():
    assert cli.parse(parser(), ["--batch_size", "2147483647"]).batch_size == 2147483647
    for large in ("2147483648", "1" + "0" * 400):
        with pytest.raises(UserError, match="it must be at most 2147483647"):
            cli.parse(parser(), ["--batch_size", large])
    args = cli.parse(parser(), ["--batch_size", "1", "--share", "1", "--index", "0", "7", "--lr", "1e-9",
                                "--half", "false"])
    assert (args.batch_size, args.share, args.index, args.lr, args.half) == (1, 1.0, [0, 7], 1e-9, False)
    assert (cli.SEED.low, cli.SEED.high, str(cli.SEED)) == (0, 2 ** 32 - 1, "from 0 to 4294967295")


@pytest.mark.parametrize("line, found", [
    ("index: 3", [3]), ("index: [3, 4]", [3, 4]), ("text: a dog", ["a dog"]), ("text: [a, b]", ["a", "b"]),
    ("check: true", True), ("check: off", False), ("half: Yes", True), ("batch_size: 010", 10), ("lr: 1e-3", 1e-3),
    ("lr:", 0.1)])
def test_a_settings_file_holds_a_list_or_a_single_value(tmp_path, line, found):
    path = tmp_path / "s.yaml"
    path.write_text(f"{line}\n")
    assert getattr(cli.parse(parser(), ["--config", str(path)]), line.split(":")[0]) == found


@pytest.mark.parametrize("line, message", [
    ("text: [a, 5]", "text is 5, and should be text; put it in quotes"),
    ("text: [a, [b]]", "text is a list; give a single value"),
    ("text: [a, null]", "text is empty; give a single value"),
    ("model: 1.0", "model is 1.0, and should be text"), ("model: yes", "model is yes, and should be text"),
    ("model: [a, b]", "model is a list; give a single value"), ("model: {a: b}", "model is a mapping"),
    ("model: 2026-01-02", "model is 2026-01-02, and should be text"), ("model: ''", "model is empty; give it a value"),
    ("check: 5", "check is '5'; it must be True or False"), ("check: maybe", "check is 'maybe'; it must be True"),
    ("check: 'false'", "check is the text 'false'; leave the quotes out"), ("check: [true]", "check is a list"),
    ("half: 'true'", "half is the text 'true'"), ("batch_size: true", "is 'true'; it must be a whole number"),
    ("batch_size: 1:30", "is '1:30'; it must be a whole number"), ("batch_size: '7'", "is the text '7'"),
    ("batch_size: 7.0", "is '7.0'; it must be a whole number"), ("batch_size: [1]", "batch_size is a list"),
    ("index: [1, true]", "index is 'true'; it must be a whole number"),
    ("lr: yes", "lr is 'yes'; it must be a number")])
def test_a_value_of_another_kind_is_refused(tmp_path, line, message):
    path = tmp_path / "s.yaml"
    path.write_text(f"{line}\n")
    with pytest.raises(UserError, match=re.escape(message)):
        cli.parse(parser(), ["--config", str(path)])


def test_help_tells_every_default():
    given = parser()
    given.add_argument("--image", required=True, help="a picture")
    shown = " ".join(given.format_help().split())
    assert "of all (from 0 to 1; default: 0.5)" in shown
    assert "only look (default: off)" in shown
    assert "a picture (required)" in shown


def test_a_text_is_not_empty_and_a_path_is_what_it_is_called(tmp_path, monkeypatch):
    def given(*arguments):
        own = cli.make_parser("doc")
        own.add_argument("--split", type=str)
        own.add_argument("--output_dir", metavar="FOLDER")
        own.add_argument("--image", metavar="FILE", nargs="+")
        own.add_argument("--output", metavar="FILE.png")
        return cli.parse(own, list(map(str, arguments)))

    (tmp_path / "file").write_text("")
    assert given("--split", "").split == ""
    assert given("--output_dir", tmp_path / "new" / "er", "--output", tmp_path / "new" / "x.png").image is None
    for arguments, message in [
            (("--output_dir", ""), "--output_dir is empty; give it a value; see --help"),
            (("--output_dir", " "), "--output_dir is empty"), (("--image", "x", ""), "--image is empty"),
            (("--output_dir", tmp_path / "file"), f"--output_dir {tmp_path}/file: {tmp_path}/file is a file; give a"),
            (("--output_dir", tmp_path / "file" / "x"), f"{tmp_path}/file is a file; give a folder"),
            (("--image", tmp_path / "file", tmp_path), f"--image {tmp_path}: is a folder; give a file"),
            (("--output", tmp_path / "file" / "x.png"), f"{tmp_path}/file is a file; give a folder")]:
        with pytest.raises(UserError, match=re.escape(message)):
            given(*arguments)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match=re.escape(f"x: nothing can be written to {tmp_path}")):
        given("--output_dir", tmp_path / "x")


def test_a_range_that_only_the_data_tells():
    cli.check_range("--layers", 6, 6)
    with pytest.raises(UserError, match="--layers is 7; choose from 1 to 6"):
        cli.check_range("--layers", 7, 6)
    with pytest.raises(UserError, match="--maps is -1; choose from 0 to 6"):
        cli.check_range("--maps", -1, 6, least=0)


def test_a_result_has_its_name_only_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "x.json"
    cli.save_result(path, {"a": "é"})
    assert path.read_text(encoding="utf-8") == '{\n "a": "é"\n}\n'
    with pytest.raises(ZeroDivisionError), cli.complete(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert path.read_text(encoding="utf-8").startswith("{")
    assert [file.name for file in path.parent.iterdir()] == ["x.json"]


def run(main, arguments=(), monkeypatch=None):
    monkeypatch.setattr(sys, "argv", ["x.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.run(main, parser())
    return stop.value.code


def test_exit_codes(monkeypatch, capsys):
    def wrong(args):
        raise UserError("this\nis wrong")

    def full(args):
        raise OSError(28, "No space left on device", "x.npy")

    def stopped(args):
        raise KeyboardInterrupt

    def broken(args):
        raise RuntimeError("a defect of ours")

    assert run(wrong, monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err == "error: this is wrong\n"
    assert run(full, monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err == "error: x.npy: No space left on device; free some space or choose another " \
        "--output_dir\n"
    assert run(stopped, monkeypatch=monkeypatch) == 130
    with pytest.raises(RuntimeError):  # our own defects keep their traceback
        cli.run(broken, parser())
    monkeypatch.setattr(sys, "argv", ["x.py", "--debug"])
    with pytest.raises(UserError):
        cli.run(wrong, parser())


@pytest.mark.parametrize("error, message", [
    (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 20.00 GiB."),
     "the memory is full (OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB.); give a smaller "
     "--batch_size, or take a machine with more"),
    (MemoryError(), "the memory is full (MemoryError: ); give"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
                  "tried"), "the memory is full (RuntimeError: [enforce fail"),
    (ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
     "a file could not be written to its end (ValueError: Error while"),
    (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),    # torch.save
     "unexpected pos 576 vs 534); free some space or choose another --output_dir")])
def test_a_full_memory_or_disk_is_one_line_whichever_library_says_so(monkeypatch, capsys, error, message):
    def full(args):
        raise error

    assert run(full, monkeypatch=monkeypatch) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1
    monkeypatch.setattr(sys, "argv", ["x.py", "--debug"])
    with pytest.raises(type(error)):
        cli.run(full, parser())


def test_a_manifest_keeps_the_options_that_change_what_is_made():
    script = load_script("compute_prs")

    def kept(*arguments):
        parser = script.get_args_parser()
        return cli.command(script.__file__, script.get_args_parser(), cli.parse(parser, list(arguments)))

    assert kept() == "python compute_prs.py"
    assert kept("--resume", "--output_dir", "x", "--device", "cpu", "--num_workers", "3", "--debug") == kept()
    assert kept("--precision", "float32", "--seed", "0") == kept()  # as they are by default
    given = ("--model", "emojiclip", "--data_path", "a folder", "--compact", "--split", "")
    assert kept("--resume",
                *given) == "python compute_prs.py --model emojiclip --data_path 'a folder' --split '' --compact"
    several = load_script("compute_component_ablation")
    args = cli.parse(several.get_args_parser(), ["--model", "a", "b"])
    assert cli.command(several.__file__, several.get_args_parser(), args) == \
        "python compute_component_ablation.py --model a b"
