"""Tables of papers: their files, their steps, published figures beside ours, and the page."""
import json
import shlex

import pytest
import yaml
from builders import ROOT, WRITERS, load_script, write_caltech, write_flat_imagenet

from utils import cli
from utils.data import downloads
from utils.inputs import read_yaml
from utils.report import experiments, tables

LOADED = {name: experiments.read(name) for name in experiments.names()}
DATA = {name: f"/data/{name}" for name in read_yaml(str(downloads.LIST))}
VALUES = DATA | {"out": "out", "inspector": ""}
WORLDS = [(name, embedded) for name in LOADED for embedded in (False, True)]


def of(name: str, embedded: bool) -> dict[str, dict]:
    return experiments.variants(LOADED[name], embedded, VALUES)


def parse(steps: list[str]) -> None:
    """Read command lines as their scripts do."""
    for step in steps:
        words = shlex.split(step)
        script, rest = (words[1], words[2:]) if words[0] == "-m" else (words[0].removesuffix(".py"), words[1:])
        cli.parse(load_script(script).get_args_parser(), rest)


@pytest.mark.parametrize("name, embedded", WORLDS)
def test_every_step_is_a_command_that_its_script_takes(name, embedded):
    assert of(name, True)
    for own in of(name, embedded).values():
        parse(experiments.steps(LOADED[name], own))


def test_the_table_of_ones_own_in_the_docs_is_a_table(tmp_path):
    block = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    (tmp_path / "own.yaml").write_text(block)
    found = experiments.read("own", tmp_path)
    own = experiments.variants(found, False, VALUES)["ViT-B-16"]
    parse(experiments.steps(found, own))
    figure, = experiments.figures(found, own)
    assert (figure.key, figure.published, figure.verified) == ("last_two", 50.0, True)


@pytest.mark.parametrize("name, embedded", WORLDS)
def test_figures_have_names_of_their_own_and_a_step(name, embedded):
    for own in of(name, embedded).values():
        found = experiments.figures(LOADED[name], own)
        assert len({figure.key for figure in found}) == len({figure.name for figure in found}) == len(found)
        assert all(figure.step in experiments.steps(LOADED[name], own) for figure in found)


def leaves(published: dict, *above: str) -> list[str]:
    """Keys of all numbers of a mapping."""
    return [key for part, value in published.items() for key in
            (leaves(value, *above, part) if isinstance(value, dict) else [".".join((*above, part))])]


@pytest.mark.parametrize("name", LOADED)
def test_every_published_figure_stands_beside_one_of_ours(name):
    variants = of(name, False)
    for variant, published in (LOADED[name].get("published") or {}).items():
        keys = {key for key in leaves(published) if key not in ("from", "verified")}
        figures = [figure for figure in experiments.figures(LOADED[name], variants[variant])
                   if figure.published is not None]
        assert {figure.key for figure in figures} == keys
        assert all(figure.source for figure in figures)


def test_published_figures_are_those_of_the_papers():
    def published(name, variant, key):
        return next(figure.published for figure in experiments.figures(LOADED[name], of(name, False)[variant])
                    if figure.key == key)

    assert published("ablation", "ViT-H-14", "mlps") == 76.30
    assert published("ablation", "OpenAI ViT-L-14", "last_layers") == 73.2
    assert published("textspan", "ViT-L-14", "image_descriptions_general.60") == 72.77
    assert published("waterbirds", "ViT-L-14", "worst.heads") == 72.9
    assert published("probe", "ViT-L-14, CIFAR-100", "both") == 84.2
    assert published("segmentation", "OpenAI ViT-B-16", "maskclip.mean_ap") == 83.6
    assert published("beyond_waterbirds", "MaxViT", "groups.after") == 88.7
    assert published("beyond_segmentation", "Swin", "gradcam.foreground_iou") == 23.60


def test_tables_share_steps():
    """One decomposition of ImageNet serves several tables."""
    steps = [step for name in ("ablation", "textspan") for step in
             experiments.steps(LOADED[name], of(name, False)["ViT-L-14"])]
    assert sum("--dataset imagenet" in step and step.startswith("compute_prs.py") for step in steps) == 2
    assert len({step for step in steps if step.startswith("compute_prs.py")}) == 1


SMALL = {"title": "Small", "defaults": {"dir": "{out}/{name}", "name": "x", "number": "3"},
         "variants": {"one": {"model": "m"}}, "embedded": {"tiny": {"model": "t", "name": "y"}},
         "about": ["{dir}/about.json"],
         "steps": ["compute_prs.py --model {model} {extra}", "", "compute_ablations.py --model {model}"],
         "figures": [{"key": "{part}.a", "name": "{part}", "each": {"part": ["p", "q"]}, "file": "{dir}/r.json",
                      "value": ["rows", {"part": "{part}", "number": "{number}"}, "a", -1], "times": 100,
                      "step": "compute_prs"}],
         "published": {"one": {"from": "table 1", "verified": True, "p": {"a": 50.25}}}}


@pytest.fixture
def small(tmp_path):
    """A small table in a folder of experiments, and what it finds."""
    folder, out = tmp_path / "experiments", tmp_path / "out"
    folder.mkdir()
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    (out / "x").mkdir(parents=True)
    rows = [{"part": "q", "number": 2, "a": [7]}, {"part": "q", "number": 3, "a": [0.1, 0.2]},
            {"part": "p", "number": 3, "a": [1, 0.5]}]
    (out / "x" / "r.json").write_text(json.dumps({"rows": rows}))
    (out / "x" / "about.json").write_text(json.dumps({"model": "m", "weights_sha256": "ab", "images": 3, "else": 1}))
    return folder, out


def test_ours_is_read_and_compared(small):
    folder, out = small
    found = experiments.read("small", folder)
    own = experiments.variants(found, False, {"out": out, "extra": ""})["one"]
    assert experiments.steps(found, own) == ["compute_prs.py --model m", "compute_ablations.py --model m"]
    p, q = map(experiments.row, experiments.figures(found, own))
    assert (p["ours"], p["published"], p["difference"], p["within"]) == (50.0, 50.25, -0.25, True)
    assert (q["ours"], q["published"], q["within"]) == (20.0, None, None)
    assert p["step"] == "compute_prs.py --model m"
    assert p["from"] == "table 1"
    assert experiments.about(found, own) == [{"model": "m", "weights_sha256": "ab", "images": 3}]
    tiny = experiments.variants(found, True, {"out": out, "extra": ""})["tiny"]
    assert [experiments.row(figure)["ours"] for figure in experiments.figures(found, tiny)] == [None, None]


def test_an_unknown_table_or_key_or_name_is_refused(small):
    folder, _ = small
    with pytest.raises(cli.UserError, match="no table smal; there are small"):
        experiments.read("smal", folder)
    with pytest.raises(cli.UserError, match="nothing stands for 'extra'"):
        found = experiments.read("small", folder)
        experiments.steps(found, experiments.variants(found, False, {"out": "o"})["one"])
    for change, said in (({"figure": 1}, "unknown key figure"), ({"published": {"two": {}}}, "'two' are published")):
        (folder / "small.yaml").write_text(yaml.safe_dump(SMALL | change))
        with pytest.raises(cli.UserError, match=said):
            experiments.read("small", folder)


@pytest.fixture
def reproduce(small, monkeypatch, run_script):
    """Calls the script on the small table, whose steps only note that they were started."""
    folder, out = small
    script, started = load_script("scripts.reproduce"), []

    def start(words, log):
        started.append(words)
        bad = words[0] == "compute_ablations.py" and "bad" in words
        with open(log, "a") as file:
            file.write("a line\nerror: it is wrong\nmore\n" if bad else "fine\n")
        return 2 if bad else 0

    monkeypatch.setattr(script, "start", start)
    monkeypatch.setattr(tables, "machine", lambda: "a machine")

    def call(*arguments):
        started.clear()
        return *run_script("scripts.reproduce", "--experiments", folder, "--output_dir", out, *arguments), started

    return folder, out, call


def write_table(folder, **changes):
    table = SMALL | {"defaults": SMALL["defaults"] | {"extra": ""}} | changes
    (folder / "small.yaml").write_text(yaml.safe_dump(table))


def test_steps_are_done_once_and_the_page_says_what_is_off(reproduce):
    folder, out, call = reproduce
    write_table(folder, published={"one": {"from": "table 1", "p": {"a": 60}}})
    code, printed, err, started = call("small")
    assert code == 0, err
    assert [words[0] for words in started] == ["compute_prs.py", "compute_ablations.py"]
    found = json.loads((out / "small.json").read_text())
    assert [row["within"] for row in found["rows"]] == [False, None]
    assert found["device"] == "a machine"
    assert "torch" in found["versions"]
    assert all(step["seconds"] >= 0 for step in found["steps"])
    page = (out / "index.html").read_text()
    assert '<td class="number off">-10.00</td>' in page
    assert '<code title="compute_prs.py --model m">compute_prs.py</code>' in page
    assert "sha256 ab" in (out / "index.md").read_text()
    assert "| p | one | 60.00 | 50.00 | -10.00 | 0.5 | NO: look at `compute_prs.py --model m` | table 1 (quoted) |" in (
        out / "index.md").read_text()
    assert call("small")[-1] == []  # everything was done before


def test_a_step_that_fails_is_said_and_tried_again(reproduce):
    folder, out, call = reproduce
    write_table(folder, variants={"one": {"model": "bad"}, "two": {"model": "m"}}, published={})
    code, _, err, started = call("small")
    assert code == 2
    assert "error: 1 steps failed, such as compute_ablations.py --model bad: error: it is wrong" in err
    assert len(started) == 4  # the other variant goes on
    assert "it is wrong" in (out / "index.html").read_text()
    assert [words[-1] for words in call("small")[-1]] == ["bad"]


def test_the_embedded_world_writes_results(reproduce, tmp_path):
    folder, out, call = reproduce
    write_table(folder, embedded={"tiny": {"model": "t"}})
    (folder / "other.yaml").write_text(yaml.safe_dump(SMALL))
    code, _, err, _ = call("small", "--embedded", "--docs", tmp_path)
    assert code == 0, err
    assert json.loads((tmp_path / "results.json").read_text()) == {"small.tiny.p.a": 50.0, "small.tiny.q.a": 20.0}
    page = (tmp_path / "results.md").read_text()
    assert "| p | 50.00 |" in page
    assert "Not run yet: other." in page


def test_what_is_missing_is_said_at_once(run_script, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    out = tmp_path / "out"
    code, printed, err = run_script("scripts.reproduce", "all", "--data_root", tmp_path, "--output_dir", out)
    assert code == 2
    lines = printed.splitlines()
    assert {line.split(":")[0] for line in lines} == {*DATA, "inspector"}
    assert f"{tmp_path}/cub: the unpacked folder CUB_200_2011" in printed
    assert f"error: {len(lines)} things are missing" in err
    assert not out.exists()


def test_tables_are_listed(run_script):
    code, printed, _ = run_script("scripts.reproduce", "--list")
    assert code == 0
    assert {line.split(" | ")[0].strip("| ") for line in printed.splitlines()[2:-1]} == set(LOADED)


def test_data_sets_are_found_in_the_layouts_of_their_downloads(tmp_path):
    (tmp_path / "CIFAR100").mkdir()
    (tmp_path / "CIFAR100" / "cifar-100-python.tar.gz").touch()
    write_flat_imagenet(tmp_path / "ILSVRC2012", [0, 1])
    write_caltech(tmp_path / "caltech-101")
    for name, write in WRITERS.items():
        if name in DATA:
            (tmp_path / name).mkdir()
            write(tmp_path / name)
    needed = {name: ["test"] for name in DATA if name not in ("imagenet", "imagenet_seg")}
    needed["imagenet"] = ["val", "train"]
    found, missing = downloads.find(str(tmp_path), needed)
    assert found == {name: str(tmp_path / {"imagenet": "ILSVRC2012", "caltech101": "caltech-101"}.get(name, name))
                     for name in needed}
    assert len(missing) == 1
    assert missing[0].startswith("imagenet: get ILSVRC2012_img_train.tar (138 GB)")


def test_the_embedded_results_are_those_of_the_tables_as_they_are():
    """Every figure of docs/results.json is one that the tables name today."""
    keys = {f"{name}.{variant}.{figure.key}" for name, embedded in WORLDS if embedded
            for variant, own in of(name, True).items() for figure in experiments.figures(LOADED[name], own)}
    path = ROOT / "docs" / "results.json"
    assert not path.is_file() or set(json.loads(path.read_text())) <= keys
