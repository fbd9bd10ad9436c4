"""inference.py: descriptions of concepts in order, their rewards, and runs that were cut off."""
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from builders import ROOT, WRITERS
from fault_server import FaultServer, completes, status
from PIL import Image

from utils.cli import UserError
from utils.data import concepts
from utils.ex2 import descriptions, rewards
from utils.language import generation, loading
from utils.models.loading import load_vlm

QUESTIONS = ["What is {concept}?", "Describe the colors of {concept} to a careful painter.", "Where?  {concept}!"]
JUDGE = "r-open-clip:emojiclip"
FILES = ("d.json", "d.jsonl", "d.manifest.json")
NAMES = concepts.concept_names("emoji", None, "train", 2)


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text("\n".join(QUESTIONS), encoding="utf-8")
    return path


@pytest.fixture
def options(tiny_lm, questions, tmp_path):
    """Options of a run that takes a moment."""
    return ["--model_name", tiny_lm, "--num_concepts", 2, "--num_images_for_reward", 3, "--questions", questions,
            "--max_new_tokens", 5, "--device", "cpu", "--batch_size", 2,
            "--output_filepath", tmp_path / "out" / "d.json"]


@pytest.fixture
def generated(monkeypatch):
    """The seeds of descriptions as they are generated, in place of the count of a progress bar."""
    seeds, own = [], generation.with_transformers

    def recording(base, adapter, prompts, seeds_asked, *more):
        seeds.extend(seeds_asked)
        return own(base, adapter, prompts, seeds_asked, *more)

    monkeypatch.setattr(generation, "with_transformers", recording)
    return seeds


def read(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line]


def header(manifest):
    """The first line of the partial file of a run with that manifest."""
    return {name: value for name, value in manifest.items() if name not in ("mean_reward", "measures")}


def keep(path, manifest, texts):
    """Leave what a run with that manifest leaves that was cut off after those descriptions."""
    with descriptions.kept(path, manifest) as record:
        record.append(*texts)


def score(rows, number=3, split="train"):
    vlm = load_vlm(JUDGE, torch.device("cpu"))
    images = concepts.load_concepts("emoji", None, split, 2, number)
    return rewards.score(vlm, rewards.image_means(vlm, images, num_workers=0), [row["description"] for row in rows],
                         [images.classes.index(row["concept"]) for row in rows])


def test_one_description_a_concept_and_question(run_script, options, tiny_lm, tmp_path):
    code, out, err = run_script("inference", *options)
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == list(FILES)
    rows = read(tmp_path / "out" / "d.jsonl")
    assert all(tuple(row) == ("concept", "question", "description", "seed", "reward") for row in rows)
    assert [(row["concept"], row["question"]) for row in rows] == [
        (name, question.replace("{concept}", name)) for name in NAMES for question in QUESTIONS]
    assert [row["seed"] for row in rows] == list(range(6))
    assert {row["reward"] for row in rows} == {None}
    said = [row["description"] for row in rows]
    assert json.loads((tmp_path / "out" / "d.json").read_text()) == [said[:3], said[3:]]
    assert len(set(said)) == 6
    manifest = json.loads((tmp_path / "out" / "d.manifest.json").read_text())
    assert manifest["mean_reward"] is None
    assert manifest["measures"]["duplicates"] == 0
    assert header(manifest) == {
        "model_name": tiny_lm, "base_model_name": tiny_lm, "backend": "hf", "dataset": "emoji", "concepts": NAMES,
        "questions": QUESTIONS, "seed": 0, "max_new_tokens": 5, "weights_sha256": None}
    assert "words a description" in out
    assert f"6 descriptions -> {tmp_path / 'out' / 'd.json'}" in out
    assert "mean reward" not in out

    tokenizer = loading.load_tokenizer(tiny_lm)
    prompts = [loading.prompt_ids(tokenizer, row["question"]) for row in rows]
    chunks = list(generation.with_transformers(tiny_lm, None, prompts, list(range(6)), 5, 2, torch.device("cpu")))
    assert [text for chunk in chunks for text in chunk] == said


def test_seeds_make_the_difference(run_script, options, tmp_path):
    found = []
    for seed in (0, 0, 3):
        assert run_script("inference", *options, "--seed", seed)[0] == 0
        found.append(read(tmp_path / "out" / "d.jsonl"))
    assert found[0] == found[1]
    assert [row["seed"] for row in found[2]] == [3, 4, 5, 6, 7, 8]
    assert all(one["description"] != other["description"] for one, other in zip(found[0], found[2]))


def test_an_adapter_brings_its_base(run_script, options, tiny_lm, tiny_adapter, tmp_path):
    assert run_script("inference", *options)[0] == 0
    plain = read(tmp_path / "out" / "d.jsonl")
    assert run_script("inference", *options, "--model_name", tiny_adapter)[0] == 0
    assert [row["description"] for row in read(tmp_path / "out" / "d.jsonl")] != [row["description"] for row in plain]
    manifest = json.loads((tmp_path / "out" / "d.manifest.json").read_text())
    assert (manifest["model_name"], manifest["base_model_name"]) == (tiny_adapter, tiny_lm)
    assert manifest["weights_sha256"] == loading.adapter_hash(tiny_adapter)


def test_descriptions_are_scored_as_they_are_made_or_later(run_script, options, tmp_path, monkeypatch):
    code, out, err = run_script("inference", *options, "--score", JUDGE)
    assert code == 0, err
    rows, manifest = descriptions.read(str(tmp_path / "out" / "d.json"))
    expected = score(rows)
    assert [row["reward"] for row in rows] == pytest.approx(expected, abs=1e-4)
    assert min(expected) != max(expected)
    assert f"mean reward: {manifest['mean_reward'][0]:.2f} +- " in out
    assert (manifest["vlm_name"], manifest["reward_split"], manifest["num_images_for_reward"]) == (JUDGE, "train", 3)

    plain = tmp_path / "plain" / "p.json"
    assert run_script("inference", *options, "--output_filepath", plain)[0] == 0
    before = {path.name: path.read_bytes() for path in plain.parent.iterdir()}
    for name in ("load_tokenizer", "load_model"):
        monkeypatch.setattr(loading, name, None)  # no language model is needed any more
    later = ["--descriptions", plain, "--score", JUDGE, "--num_concepts", 2, "--num_images_for_reward", 3,
             "--device", "cpu"]
    code, out, err = run_script("inference", *later, "--output_filepath", tmp_path / "scored.json")
    assert code == 0, err
    assert descriptions.read(str(tmp_path / "scored.json"))[0] == rows
    assert {path.name: path.read_bytes() for path in plain.parent.iterdir()} == before
    assert run_script("inference", *later)[0] == 0  # in place
    assert descriptions.read(str(plain)) == (rows, manifest)
    assert json.loads(plain.read_text()) == [[row["description"] for row in part] for part in (rows[:3], rows[3:])]

    assert run_script("inference", *later, "--split", "test", "--num_images_for_reward", 2)[0] == 0  # other images
    again, manifest = descriptions.read(str(plain))
    assert [row["reward"] for row in again] == pytest.approx(score(rows, 2, "test"), abs=1e-4)
    assert [row["reward"] for row in again] != [row["reward"] for row in rows]
    assert (manifest["reward_split"], manifest["num_images_for_reward"]) == ("test", 2)


def test_a_finished_run_is_not_made_again(run_script, options, tiny_lm, tmp_path, generated, monkeypatch):
    scored = [*options, "--score", JUDGE]
    assert run_script("inference", *options)[0] == 0
    assert generated == list(range(6))
    generated.clear()
    assert f"finished already -> {tmp_path / 'out' / 'd.json'}" in run_script("inference", *options)[1]
    code, out, err = run_script("inference", *scored)  # the rewards are not there yet
    assert code == 0, err
    assert "mean reward: " in out
    whole = {name: (tmp_path / "out" / name).read_bytes() for name in FILES}
    with monkeypatch.context() as patched:
        patched.setattr(rewards, "score", None)
        for arguments in (scored, options):
            assert "finished already" in run_script("inference", *arguments)[1]
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == whole
    for change in (["--split", "test"], ["--num_images_for_reward", 2], ["--vlm_16bit", "True"]):
        assert "finished already" not in run_script("inference", *scored, *change)[1]  # scored anew
    assert not generated
    assert run_script("inference", *options, "--seed", 3)[0] == 0  # other descriptions
    assert generated == list(range(3, 9))
    generated.clear()
    for file in Path(tiny_lm).glob("*.safetensors"):
        file.touch()  # other weights, it may be
    assert run_script("inference", *options, "--seed", 3)[0] == 0
    assert generated == list(range(3, 9))


def test_the_manifest_tells_the_data_set_that_scores(run_script, tmp_path):
    path, text = tmp_path / "published.json", [["a"], [], ["b", "c"]]
    path.write_text(json.dumps(text))
    code, _, err = run_script("inference", "--score", JUDGE, "--descriptions", path, "--eval_dataset", "emoji_fixed",
                              "--num_concepts", 3, "--num_images_for_reward", 2, "--device", "cpu")
    assert code == 0, err
    assert json.loads(path.read_text()) == text
    assert json.loads(path.with_suffix(".manifest.json").read_text())["dataset"] == "emoji_fixed"
    assert "describes concepts of" not in err
    rows = [{"concept": NAMES[0], "question": "?", "description": "a", "seed": 0, "reward": None}] * 2
    descriptions.write(str(path), rows, {"dataset": "emoji_fixed"})
    _, _, err = run_script("inference", "--score", JUDGE, "--descriptions", path, "--num_concepts", 2,
                           "--num_images_for_reward", 2, "--device", "cpu")
    assert "describes concepts of emoji_fixed, and is scored by images of emoji" in err
    assert json.loads(path.with_suffix(".manifest.json").read_text())["dataset"] == "emoji"


def test_a_file_about_some_of_the_concepts_is_scored(run_script, tmp_path):
    rows = [{"concept": NAMES[1], "question": "?", "description": text, "seed": 0, "reward": None}
            for text in ("one", "two")]
    descriptions.write(str(tmp_path / "d.json"), rows, {"dataset": "emoji"})
    code, _, err = run_script("inference", "--descriptions", tmp_path / "d.json", "--score", JUDGE,
                              "--num_images_for_reward", 2, "--device", "cpu")
    assert code == 0, err
    assert [row["reward"] for row in read(tmp_path / "d.jsonl")] == pytest.approx(score(rows, 2), abs=1e-3)


def test_a_run_that_was_cut_off_goes_on_where_it_stopped(run_script, options, tmp_path, generated):
    assert run_script("inference", *options)[0] == 0
    whole = {name: (tmp_path / "out" / name).read_bytes() for name in FILES}
    said = [row["description"] for row in read(tmp_path / "out" / "d.jsonl")]
    assert generated == list(range(6))
    for kept, cut in ((2, ""), (4, '"cut o'), (6, "")):
        shutil.rmtree(tmp_path / "out")
        path = str(tmp_path / "out" / "d.json")
        keep(path, header(json.loads(whole["d.manifest.json"])), said[:kept])
        with next((tmp_path / "out").iterdir()).open("a") as partial:
            partial.write(cut)
        generated.clear()
        assert run_script("inference", *options)[0] == 0
        assert generated == list(range(kept, 6))
        assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == whole


def test_what_earlier_weights_said_is_not_gone_on_with(refused, run_script, options, tiny_lm, tmp_path):
    base = shutil.copytree(tiny_lm, tmp_path / "base")
    more = [*options, "--model_name", base]
    assert run_script("inference", *more)[0] == 0
    path = tmp_path / "out" / "d.json"
    keep(str(path), header(json.loads(path.with_suffix(".manifest.json").read_text())), ["one"])
    os.utime(base / "model.safetensors")
    assert f"d.kept.partial holds what {base} said before its weights were written anew; delete it" in refused(
        "inference", *more)


def test_what_was_made_is_kept_as_it_is_made(run_script, options, tmp_path, monkeypatch):
    own = generation.with_transformers

    def cut_off(*arguments):
        chunks = own(*arguments)
        yield next(chunks)
        yield next(chunks)
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "with_transformers", cut_off)
    code, _, err = run_script("inference", *options)
    assert code == 130
    assert "interrupted" in err
    (partial,) = (tmp_path / "out").iterdir()
    assert partial.name not in FILES
    kept = partial.read_text().split("\n")[1:-1]
    monkeypatch.setattr(generation, "with_transformers", own)
    assert run_script("inference", *options)[0] == 0
    assert [json.loads(line) for line in kept] == [row["description"] for row in read(tmp_path / "out" / "d.jsonl")][:4]


@pytest.mark.parametrize("change", [["--seed", 1], ["--max_new_tokens", 6], ["--num_concepts", 1]])
def test_a_run_with_other_options_does_not_go_on(refused, run_script, options, tmp_path, change):
    assert run_script("inference", *options)[0] == 0
    begun = header(json.loads((tmp_path / "out" / "d.manifest.json").read_text()))
    said = read(tmp_path / "out" / "d.jsonl")[0]["description"]
    shutil.rmtree(tmp_path / "out")
    keep(str(tmp_path / "out" / "d.json"), begun, [said])
    line = refused("inference", *options, *change)
    assert "was made with another " in line
    assert "go on with the same options, delete it, or name another --output_filepath" in line
    assert run_script("inference", *options)[0] == 0


def test_the_wrong_adapter_is_found_by_its_weights(refused, run_script, options, tiny_adapter, tmp_path):
    """A partial file of an adapter that has been trained further since."""
    copy = shutil.copytree(tiny_adapter, tmp_path / "copy")
    assert run_script("inference", *options, "--model_name", copy)[0] == 0
    begun = header(json.loads((tmp_path / "out" / "d.manifest.json").read_text()))
    keep(str(tmp_path / "out" / "d.json"), begun | {"weights_sha256": "0"}, ["said"])
    assert "was made with another weights_sha256; " in refused("inference", *options, "--model_name", copy)


# What the user can mend: each ends in one line.

def test_what_is_missing_is_said(refused, tiny_lm, tmp_path):
    assert "name an adapter or a language model with --model_name" in refused(
        "inference", "--output_filepath", "d.json")
    assert "--descriptions FILE is for scoring; add --score VLM_NAME" in refused(
        "inference", "--descriptions", "d.json")
    assert "--output_filepath X.json is missing" in refused("inference", "--model_name", tiny_lm)


def test_a_name_without_its_ending_is_refused(refused, options, tmp_path, generated):
    """Of llama-3.1 and llama-3.2, both would be written to llama-3.json."""
    path = tmp_path / "llama-3.1"
    assert f"--output_filepath {path}: the name should end in .json, such as {path}.json" in refused(
        "inference", *options, "--output_filepath", path)
    assert not generated


def test_an_adapter_of_another_model_is_refused(refused, options, tiny_lm, tiny_adapter, tmp_path):
    line = refused("inference", *options, "--model_name", tiny_adapter, "--base_model_name", "smollm2-135m")
    assert f"{tiny_adapter} was trained on {tiny_lm} and does not fit --base_model_name smollm2-135m" in line
    assert "no adapter there" in refused("inference", *options, "--model_name", tmp_path)
    assert "cannot be loaded" in refused("inference", *options, "--model_name", tmp_path / "nowhere")


def test_a_data_set_that_is_not_there_is_refused(refused, options, tmp_path, generated):
    (tmp_path / "empty").mkdir()
    for name, expected in (("cub", "images.txt does not exist; get CUB_200_2011.tgz"),
                           ("stanford_dogs", "does not exist; get "), ("imagefolder", "expected folders, one a class")):
        assert expected in refused("inference", *options, "--eval_dataset", name, "--data_root", tmp_path / "empty")
    assert not generated


def test_a_concept_without_images_is_refused_before_the_long_work(refused, options, tmp_path, generated):
    root = tmp_path / "images"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "cat" / "1.png")
    data = ["--eval_dataset", "imagefolder", "--data_root", root]
    assert "no images of 'dog' in the split" in refused("inference", *options, *data, "--score", JUDGE)
    WRITERS["stanford_cars"](tmp_path / "cars")
    line = refused("inference", *options, "--eval_dataset", "stanford_cars", "--data_root", tmp_path / "cars",
                   "--split", "test", "--score", JUDGE)
    assert "no images of '2012 Ram C/V Van' in the split 'test'; choose another --split" in line
    assert not generated
    assert not (tmp_path / "out").exists()


def test_a_file_that_inference_did_not_write_is_refused(refused, tmp_path):
    judge = ["--score", JUDGE, "--num_concepts", 2, "--num_images_for_reward", 1, "--device", "cpu"]
    with pytest.raises(UserError, match="d.jsonl does not exist; descriptions are made with: python inference.py"):
        descriptions.read(str(tmp_path / "d.json"), NAMES)
    (tmp_path / "d.json").write_text('{"text": "a cat"}')  # alone: read as a published list
    assert "expected is a JSON list (concepts) of lists (descriptions)" in refused(
        "inference", "--descriptions", tmp_path / "d.json", *judge)
    (tmp_path / "d.jsonl").write_text('{"text": "a cat"}\n')
    line = refused("inference", "--descriptions", tmp_path / "d.json", *judge)
    assert "not a file of inference.py, whose lines hold concept, question, description, seed, reward" in line
    row = {"concept": "unicorn", "question": "?", "description": "a horse", "seed": 0, "reward": None}
    descriptions.write(str(tmp_path / "d.json"), [row], {})
    assert "emoji has no concept 'unicorn'; name the data set of the descriptions with --eval_dataset" in refused(
        "inference", "--descriptions", tmp_path / "d.json", *judge)
    assert read(tmp_path / "d.jsonl") == [row]


def test_a_server_that_is_not_there_is_refused(refused, options, tmp_path):
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    assert f"--base_url {url}: no OpenAI-compatible server answers there" in refused(
        "inference", *options, "--backend", "server", "--base_url", url)


def test_the_manifest_tells_which_served_model_speaks(run_script, refused, options, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    manifest = tmp_path / "out" / "d.manifest.json"

    def asked(server, *more):
        return [*options, "--backend", "server", "--base_url", server.url, *more]

    with FaultServer([completes] * 4 + [status(400)] * 2, models=("first", "second")) as server:
        assert "what is done is kept" in refused("inference", *asked(server))
        assert "was made with another served_model (first, now second); go on with" in refused(
            "inference", *asked(server, "--served_model_name", "second"))
    with FaultServer([completes] * 20, models=("second",)) as other:  # another one at the same place
        assert "was made with another served_model (first, now second)" in refused("inference", *asked(other))
        assert not other.chats
        assert run_script("inference", *asked(other, "--served_model_name", "first"))[0] == 0
        assert len(other.chats) == 2
        assert json.loads(manifest.read_text())["served_model"] == "first"
        code, out, _ = run_script("inference", *asked(other, "--served_model_name", "first"))
        assert (code, len(other.chats)) == (0, 2)  # finished already
        assert run_script("inference", *asked(other))[0] == 0
        assert len(other.chats) == 2 + 6
    assert json.loads(manifest.read_text())["served_model"] == "second"


@pytest.mark.skipif(torch.cuda.is_available() or generation.cpu_build(),
                    reason="vLLM runs here: its absence was not covered")
def test_vllm_where_it_cannot_run_is_refused(refused, options):
    assert "--backend vllm cannot run here" in refused("inference", *options, "--backend", "vllm")


@pytest.mark.skipif(torch.cuda.is_available() or generation.cpu_build(),
                    reason="vLLM runs here: its absence was not covered")
@pytest.mark.parametrize("option", ["--tensor_parallel_size", "--max_model_len"])
def test_options_of_another_backend_are_refused(refused, options, option, generated):
    assert f"{option} is of --backend vllm, and this is hf; leave it out" in refused("inference", *options, option, 64)
    assert not generated


def test_the_repository_s_questions_are_the_default(run_script, options, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    place = options.index("--questions")
    code, _, err = run_script("inference", *options[:place], *options[place + 2:], "--num_concepts", 1,
                              "--max_new_tokens", 1)
    assert code == 0, err
    questions = descriptions.read_questions("configs/questions.txt")
    assert len(questions) == 25
    assert [row["question"] for row in read(tmp_path / "out" / "d.jsonl")] == [
        descriptions.fill(question, NAMES[0]) for question in questions]


def test_published_descriptions_are_scored_as_they_are(run_script, refused, tmp_path):
    path = tmp_path / "published.json"
    texts = [[f"a {NAMES[0]}", ""], [f"It is a {NAMES[1]}."]]
    path.write_text(json.dumps(texts))
    arguments = ["--score", JUDGE, "--descriptions", path, "--num_images_for_reward", 3, "--device", "cpu"]
    code, out, err = run_script("inference", *arguments, "--num_concepts", 2)
    assert code == 0, err
    rows = descriptions.read(str(path))[0]
    assert [row["concept"] for row in rows] == [NAMES[0], NAMES[0], NAMES[1]]
    assert [row["reward"] for row in rows] == pytest.approx(score(rows), abs=1e-4)
    assert json.loads(path.read_text()) == texts
    assert "have more tokens than" not in err
    (tmp_path / "published.jsonl").unlink()
    path.write_text(json.dumps([[f"a {NAMES[0]}", "a very " * 40], ["a cat"]]))
    assert "1 of 3 descriptions have more tokens than r-open-clip:emojiclip reads" in run_script(
        "inference", *arguments, "--num_concepts", 2)[2]
    (tmp_path / "published.jsonl").unlink()
    path.write_text(json.dumps(texts))
    assert "holds descriptions of 2 concepts, and the data set has 260" in refused("inference", *arguments)


def test_an_interrupted_run_says_that_it_goes_on(run_script, options, tmp_path, monkeypatch):
    own = generation.with_transformers

    def interrupted(*arguments):
        chunks = own(*arguments)
        yield next(chunks)
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "with_transformers", interrupted)
    code, _, err = run_script("inference", *options)
    assert code == 130
    assert "2 of 6 descriptions are kept: the same command again goes on" in err
    monkeypatch.setattr(generation, "with_transformers", own)
    assert run_script("inference", *options)[0] == 0
    assert len(read(tmp_path / "out" / "d.jsonl")) == 6
