"""Files of descriptions and what is made of them, and the questions they answer."""
import importlib
import json
import statistics
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from builders import ROOT

from utils import cli
from utils.cli import UserError
from utils.ex2 import descriptions

AWKWARD = ["plain", "", "two\nlines\r\nand\ttabs", 'quotes " and \' and \\n', "line\u2028separator\u2029and\x85next",
           "ünïcödé 🦓", "a | b", " spaces "]
MANIFEST = {"model_name": "tiny", "concepts": ["cat", "dög"], "questions": ["What is {concept}?\u2028"], "seed": 0,
            "weights_sha256": None}


def rows_of(texts, concepts=("dög", "cat"), rewards=(None,)):
    """Rows, the concepts one after the other, each with an equal share of the texts."""
    each = len(texts) // len(concepts)
    return [{"concept": concepts[i // each], "question": f"What is {concepts[i // each]}, {i}?", "description": text,
             "seed": 7 + i, "reward": rewards[i % len(rewards)]} for i, text in enumerate(texts)]


# Questions.

def test_the_25_questions_of_the_repository():
    questions = descriptions.read_questions(str(ROOT / "configs" / "questions.txt"))
    assert len(questions) == len(set(questions)) == 25
    for question in questions:
        assert question.count("{a concept}") == 1
        assert question.count("{") == question.count("}") == 1
        assert descriptions.fill(question, "cat").count("cat") == 1
        assert "{" not in descriptions.fill(question, "cat")
    assert len({descriptions.fill(question, "cat").lower() for question in questions}) == 25


def test_questions_are_lines_with_the_concept_s_place(tmp_path):
    path = tmp_path / "q.txt"
    path.write_text("\n  What is {concept}?  \n\nIs {concept} like {x} or {concept}?\n", encoding="utf-8")
    found = descriptions.read_questions(str(path))
    assert found == ["What is {concept}?", "Is {concept} like {x} or {concept}?"]
    assert descriptions.fill(found[1], "a {x} cat") == "Is a {x} cat like {x} or a {x} cat?"
    path.write_text("What is {concept}?\nWhat is {name}?\n")
    with pytest.raises(UserError, match=r"q.txt: 'What is \{name\}\?' lacks \{concept\}"):
        descriptions.read_questions(str(path))
    path.write_text(" \n\n")
    with pytest.raises(UserError, match="q.txt holds no questions"):
        descriptions.read_questions(str(path))
    with pytest.raises(UserError, match="--questions .*nowhere.txt does not exist; .* configs/questions.txt"):
        descriptions.read_questions(str(tmp_path / "nowhere.txt"))


def test_a_name_has_an_article_where_english_wants_one():
    for name, named in (("owl", "an owl"), ("cat", "a cat"), ("grapes", "grapes"), ("sushi", "sushi"),
                        ("unicycle", "a unicycle"), ("hourglass", "an hourglass"), ("2000 Audi TT", "a 2000 Audi TT"),
                        ("8", "an 8"), ("18", "an 18"), ("11-seater", "an 11-seater"), ("800", "an 800"),
                        ("1800", "a 1800"), ("18000", "an 18000"), ("747", "a 747"), ("MD-11", "an MD-11"),
                        ("F-16A/B", "an F-16A/B"), ("SUV", "an SUV"), ("UFO", "a UFO"), ("U-boat", "a U-boat"),
                        ("t-shirt", "a t-shirt"), ("x-ray", "an x-ray"), ("DHC-8", "a DHC-8"), ("RSVP", "an RSVP"),
                        ("FIAT 500", "a FIAT 500"), ("Il-76", "an Il-76")):
        assert descriptions.fill("What is {a concept}, if not {concept}?", name) == f"What is {named}, if not {name}?"


def test_a_name_in_the_plural(tmp_path):
    (tmp_path / "q.txt").write_text("How many {concepts} are there?")
    question, = descriptions.read_questions(str(tmp_path / "q.txt"))
    for name, many in (("owl", "owls"), ("grapes", "grapes"), ("sheep", "sheep"), ("House Finch", "House Finches"),
                       ("tiger lily", "tiger lilies"), ("Blue Jay", "Blue Jays"), ("Albatross", "Albatrosses"),
                       ("Boeing 717 aircraft", "Boeing 717 aircraft"), ("Siamese", "Siamese")):
        assert descriptions.fill(question, name) == f"How many {many} are there?"


def test_the_published_questions_are_read_as_they_are(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(["Describe {}.", "What is {} like?\n"]))
    found = descriptions.read_questions(str(path))
    assert found == ["Describe {concept}.", "What is {concept} like?"]
    assert descriptions.fill(found[0], "owl") == "Describe owl."
    for content in ("[1]", "[", '["What is it?"]'):
        path.write_text(content)
        with pytest.raises(UserError, match="prompts.json"):
            descriptions.read_questions(str(path))


def test_published_descriptions_are_read_by_the_names_of_their_concepts(tmp_path):
    path = tmp_path / "published.json"
    path.write_text(json.dumps([["It barks.", ""], ["It purrs."]]))
    rows, manifest = descriptions.read(str(path), ["dog", "cat"])
    assert [(row["concept"], row["description"]) for row in rows] == [("dog", "It barks."), ("dog", ""),
                                                                      ("cat", "It purrs.")]
    assert manifest == {"concepts": ["dog", "cat"]}
    with pytest.raises(UserError, match="holds descriptions of 2 concepts, and the data set has 3"):
        descriptions.read(str(path), ["dog", "cat", "owl"])
    with pytest.raises(UserError, match="published.jsonl does not exist"):
        descriptions.read(str(path))
    for content in ('{"dog": ["x"]}', '["x"]', "[[1]]", "["):
        path.write_text(content)
        with pytest.raises(UserError, match="expected is a JSON list"):
            descriptions.read(str(path), ["dog"])


def test_a_concept_without_descriptions_keeps_its_place(tmp_path):
    path = tmp_path / "published.json"
    path.write_text(json.dumps([["x"], [], ["y", "z"]]))
    for _ in range(2):  # as published, and beside a .jsonl
        rows, manifest = descriptions.read(str(path), ["dog", "cat", "owl"])
        descriptions.write(str(path), rows, manifest)
        assert json.loads(path.read_text()) == [["x"], [], ["y", "z"]]
    descriptions.write(str(path), [row for row in rows if row["concept"] == "owl"], manifest)
    assert json.loads(path.read_text()) == [[], [], ["y", "z"]]


@pytest.mark.parametrize("content", ["What is {concept}?\n".encode("utf-16"),
                                     "Größe von {concept}?".encode("latin-1")],
                         ids=["utf-16", "latin-1"])
def test_questions_in_another_encoding_are_refused(tmp_path, content):
    (tmp_path / "q.txt").write_bytes(content)
    with pytest.raises(UserError, match="q.txt"):
        descriptions.read_questions(str(tmp_path / "q.txt"))


# The queries of a training run.

CHAT, PLAIN = SimpleNamespace(chat_template="{{ messages }}"), SimpleNamespace(chat_template=None)
QUESTIONS = ["What is {concept}?", "Describe {concept}.", "Where is {concept}?"]


def prompts(number, seed=0, tokenizer=PLAIN, concepts=("cat", "dog"), questions=QUESTIONS):
    from utils.ex2 import training

    return training.prompts(list(concepts), list(questions), tokenizer, number, seed)


def test_every_pair_comes_once_before_any_comes_again():
    rows = prompts(15)
    pairs = {(k, descriptions.fill(question, name)) for k, name in enumerate(("cat", "dog")) for question in QUESTIONS}
    asked = [(row["concept"], row["query"]) for row in rows]
    assert set(asked[:6]) == set(asked[6:12]) == pairs
    assert len(set(asked[12:])) == 3
    assert asked[:6] != asked[6:12] != sorted(pairs)
    assert Counter(asked[:12]) == dict.fromkeys(pairs, 2)


def test_the_order_depends_on_the_seed_alone_and_a_longer_run_begins_like_a_shorter_one():
    whole = prompts(40)
    assert whole == prompts(40)
    for number in (0, 1, 6, 7, 39):
        assert prompts(number) == whole[:number]
    assert prompts(6, seed=1) != whole[:6]
    assert prompts(40, seed=1)[12:18] != whole[12:18]


def test_a_prompt_is_a_turn_of_a_chat_or_the_query_and_a_blank_line():
    chat, plain = prompts(6, tokenizer=CHAT), prompts(6)
    assert [row["query"] for row in chat] == [row["query"] for row in plain]
    for turn, text in zip(chat, plain):
        assert turn["prompt"] == [{"role": "user", "content": turn["query"]}]
        assert text["prompt"] == text["query"] + "\n\n"
        assert not text["query"].endswith("\n")
        assert set(text) == {"prompt", "query", "concept"}


# Files.

def test_the_sums_in_a_manifest_are_those_of_the_last_rows(tmp_path):
    path, rows = str(tmp_path / "d.json"), rows_of(["a cat", "a dog"])
    descriptions.write(path, rows, MANIFEST)
    found, manifest = descriptions.read(path)
    assert manifest["mean_reward"] is None
    descriptions.write(path, [row | {"reward": i + 1.0} for i, row in enumerate(found)], manifest)
    assert descriptions.read(path)[1]["mean_reward"] == [1.5, 0.5]


def test_what_is_written_is_read_again(tmp_path):
    path, rows = str(tmp_path / "new" / "d.json"), rows_of(AWKWARD, rewards=(1.5, None, 0.0))
    descriptions.write(path, rows, MANIFEST)
    assert descriptions.read(path) == descriptions.read(str(tmp_path / "new" / "d.jsonl"))
    found, manifest = descriptions.read(path)
    assert found == rows
    sums = descriptions.sums(rows)
    assert manifest == MANIFEST | {name: pytest.approx(value) for name, value in sums.items()}
    assert sums["measures"]["copies"] == 1 / 8
    assert json.loads((tmp_path / "new" / "d.json").read_text(encoding="utf-8")) == [AWKWARD[:4], AWKWARD[4:]]
    lines = (tmp_path / "new" / "d.jsonl").read_text(encoding="utf-8").split("\n")
    assert len(lines) == len(rows) + 1
    assert lines[-1] == ""
    for line in lines[:-1]:
        assert list(json.loads(line)) == ["concept", "question", "description", "seed", "reward"]
    assert "🦓" in "".join(lines)  # readable, not escaped
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"d.json", "d.jsonl", "d.manifest.json"}


def test_only_the_keys_are_written_and_concepts_keep_their_order(tmp_path):
    rows = [row | {"more": 1} for row in rows_of(list("abcdef"), concepts=("z", "a", "m"))]
    descriptions.write(str(tmp_path / "d.json"), rows, {})
    assert json.loads((tmp_path / "d.json").read_text()) == [["a", "b"], ["c", "d"], ["e", "f"]]
    assert all(tuple(row) == descriptions.KEYS for row in descriptions.read(str(tmp_path / "d.json"))[0])
    descriptions.write(str(tmp_path / "d.json"), rows[::-1], {})
    assert json.loads((tmp_path / "d.json").read_text()) == [["f", "e"], ["d", "c"], ["b", "a"]]


def test_a_name_with_dots_keeps_them(tmp_path):
    for name in ("run.1.json", "run.2.json"):
        descriptions.write(str(tmp_path / name), rows_of([name, name]), {})
    assert descriptions.read(str(tmp_path / "run.1.json"))[0][0]["description"] == "run.1.json"
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("content", [
    "", "\n", "no json\n", "[1, 2]\n", "null\n", "{}\n", "[[\"a\"]]\n", '"text"\n', b"\xff\xfe{}\n",
    '{"concept": "cat"}\n', '{"concept": 1, "question": "a", "description": "b"}\n',
    '{"concept": "a", "description": "b"}'])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "d.json").write_text("[[]]")
    with pytest.raises(UserError, match=r"d.jsonl does not exist; .*python inference.py --output_filepath .*d.json"):
        descriptions.read(str(tmp_path / "d.json"))
    (tmp_path / "d.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match="line 1: not a file of inference.py, whose lines hold concept, question, "
                                        "description, seed, reward|holds no descriptions"):
        descriptions.read(str(tmp_path / "d.json"))


def test_a_file_without_a_manifest_is_read(tmp_path):
    descriptions.write(str(tmp_path / "d.json"), rows_of(["a", "b"]), MANIFEST)
    (tmp_path / "d.manifest.json").unlink()
    assert descriptions.read(str(tmp_path / "d.json")) == (rows_of(["a", "b"]), {})


# A run that was cut off.

def go_on(path, *more, manifest=MANIFEST):
    """What an earlier run had made, after which more is made."""
    with descriptions.kept(path, manifest) as record:
        record.append(*more)
        return record.lines


def test_a_run_that_was_cut_off_goes_on(tmp_path):
    path, partial = str(tmp_path / "new" / "d.json"), tmp_path / "new" / "d.kept.partial"
    assert go_on(path, *AWKWARD[:3]) == []
    assert go_on(path, *AWKWARD[3:]) == AWKWARD[:3]
    assert go_on(path) == AWKWARD
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [partial]
    descriptions.write(path, rows_of(AWKWARD), MANIFEST)
    assert not partial.exists()
    assert go_on(path) == []


@pytest.mark.parametrize("last", ["d.manifest.json", "d.jsonl", "d.json"])
def test_what_was_made_survives_a_disk_that_is_full_at_the_end(tmp_path, monkeypatch, last):
    own, path = cli.os.replace, str(tmp_path / "d.json")

    def replace(source, target):
        if target.name == last:
            raise OSError(28, "No space left on device")
        own(source, target)

    go_on(path, *AWKWARD)
    with monkeypatch.context() as full:
        full.setattr(cli.os, "replace", replace)
        with pytest.raises(OSError, match="No space left"):
            descriptions.write(path, rows_of(AWKWARD), MANIFEST)
    assert go_on(path) == AWKWARD


@pytest.mark.parametrize("full", [".manifest.json", ".jsonl", ".json"])
def test_a_disk_that_is_full_leaves_rewards_with_their_manifest(tmp_path, monkeypatch, full):
    path, rows = str(tmp_path / "d.json"), rows_of(["a", "b"])
    descriptions.write(path, rows, MANIFEST)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    own = Path.write_text

    def write_text(self, *arguments, **options):
        if self.name == f"d{full}.partial":
            raise OSError(28, "No space left on device")
        return own(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(OSError, match="No space left"):
        descriptions.write(path, [row | {"reward": 1.0} for row in rows], MANIFEST | {"vlm_name": "v"})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_dots_in_a_name_are_no_ending(tmp_path):
    for name in ("llama-3.1", "llama-3.2"):
        descriptions.write(str(tmp_path / f"{name}.json"), rows_of([name, name]), MANIFEST)
    for name in ("llama-3.1", "llama-3.2"):
        for path in (name, f"{name}.json", f"{name}.jsonl"):
            assert descriptions.read(str(tmp_path / path))[0][0]["description"] == name
    assert descriptions.lines_path(str(tmp_path / "llama-3.3")) == tmp_path / "llama-3.3.jsonl"


@pytest.mark.parametrize("last", ["plain", "ünïcödé 🦓", "line\u2028separator"],
                         ids=["plain", "umlauts", "separator"])
def test_wherever_the_last_line_is_cut_it_is_made_again(tmp_path, last):
    path, partial = str(tmp_path / "d.json"), tmp_path / "d.kept.partial"
    go_on(path, "first", "", last)
    whole = partial.read_bytes()
    for cut in range(1, len((json.dumps(last, ensure_ascii=False) + "\n").encode()) + 1):
        partial.write_bytes(whole[:-cut])
        assert go_on(path, last) == ["first", ""]
        assert partial.read_bytes() == whole


@pytest.mark.parametrize("change", [{"seed": 1}, {"concepts": ["cat"]}, {"weights_sha256": "0"}, {"new": 1}])
def test_a_run_with_other_options_is_not_continued(tmp_path, change):
    path, partial = str(tmp_path / "d.json"), tmp_path / "d.kept.partial"
    go_on(path, "first")
    before = partial.read_bytes()
    with pytest.raises(UserError, match=f"{partial} was made with another {next(iter(change))}.*; go on with the same"):
        go_on(path, "second", manifest=MANIFEST | change)
    assert partial.read_bytes() == before
    assert go_on(path) == ["first"]


def test_a_run_is_finished_where_its_files_are_of_the_same_settings(tmp_path):
    path, rows = tmp_path / "d.json", rows_of(["a", "b"])
    assert descriptions.finished(str(path), MANIFEST) is None
    descriptions.write(str(path), rows, MANIFEST | {"vlm_name": "v"})
    found, about = descriptions.finished(str(path), MANIFEST)
    assert found == rows
    assert about["vlm_name"] == "v"
    assert descriptions.finished(str(path.with_suffix(".txt")), MANIFEST) == (found, about)
    for change in ({"seed": 1}, {"new": 1}, {"concepts": ["cat"]}):
        assert descriptions.finished(str(path), MANIFEST | change) is None
    written = path.stat().st_mtime
    assert descriptions.finished(str(path), MANIFEST, written - 1)
    assert descriptions.finished(str(path), MANIFEST, written + 1) is None  # the language model is newer
    go_on(str(path), "first")
    assert descriptions.finished(str(path), MANIFEST) is None  # another run has begun
    (tmp_path / "d.kept.partial").unlink()
    for suffix in (".json", ".jsonl", ".manifest.json"):
        descriptions.write(str(path), rows, MANIFEST)
        path.with_suffix(suffix).unlink()
        assert descriptions.finished(str(path), MANIFEST) is None


# Sums.

def test_the_mean_reward_and_its_standard_error():
    rows = rows_of(["a"] * 6, rewards=(1.0, 2.0, None, 4.0, 5.0, None))
    assert descriptions.sums(rows)["mean_reward"] == pytest.approx((3.0, (10 / 3 / 4) ** 0.5))
    for none in (rows[:1], rows_of(["a", "b"])):
        assert descriptions.sums(none)["mean_reward"] is None


def test_the_summary():
    rows = rows_of(["It has black and white stripes.", "A pet that purrs at night."], rewards=(20.0, 24.0))
    lines = descriptions.summary(rows)
    assert lines[0] == "mean reward: 22.00 +- 2.00 (standard error)"
    assert lines[1].startswith("words a description: 6.0; duplicates 0.0%, repeated phrases 0.0%, copies of the "
                               "question 0.0%")
    same = descriptions.summary(rows_of(["It is what it is"] * 4))
    assert len(same) == 2
    assert same[0].startswith("words")
    assert same[1].startswith("warning: the reward may be gamed: duplicates 75%")


# Two files side by side.

def compare(capsys, tmp_path, before, after, *more, manifests=({}, {})):
    module = importlib.import_module("scripts.compare_descriptions")
    for name, rows, manifest in zip(("before", "after"), (before, after), manifests):
        descriptions.write(str(tmp_path / f"{name}.json"), rows, manifest)
    arguments = ["--before", str(tmp_path / "before.json"), "--after", str(tmp_path / "after.json"), *more]
    module.main(cli.parse(module.get_args_parser(), arguments))
    out = capsys.readouterr().out
    assert (tmp_path / "comparison.md").read_text() == out
    return out.splitlines()


def test_two_files_are_compared(tmp_path, capsys):
    before = rows_of([f"some thing {i}" for i in range(8)], rewards=(1.0, 3.0))
    after = rows_of(["a | b\nc", *(f"other thing {i}" for i in range(7))], rewards=(5.0, None))
    after = after[:6] + rows_of([f"x {i}" for i in range(8)], rewards=(7.0, None))[6:]
    lines = compare(capsys, tmp_path, before, after, "--num_examples", "4")
    assert lines[2].startswith("| before (8) | 2.00 +- 0.38 | 3.0 | 0.0% |")
    assert lines[3].startswith("| after (8) | 5.50 +- 0.50 |")
    gains = [statistics.fmean(row["reward"] for row in after if row["concept"] == concept and row["reward"])
             - statistics.fmean(row["reward"] for row in before if row["concept"] == concept)
             for concept in ("cat", "dög")]
    mean, error = statistics.fmean(gains), statistics.stdev(gains) / 2 ** 0.5
    assert lines[5].startswith(f"Difference, paired by concept: {mean:.2f} +- {error:.2f} (standard error over 2 ")
    examples = lines[9:]
    assert examples[0] == "| What is dög, 0? | some thing 0 | 1.0 | a \\| b c | 5.0 |"
    assert len(examples) == 4
    assert "| What is dög, 2? |" in examples[1]
    assert len(set(examples)) == 4
    assert not any("| none |" in line for line in examples)


def test_files_without_rewards_or_without_common_questions(tmp_path, capsys):
    scored, bare = rows_of(["a b", "c d"], rewards=(1.0, 3.0)), rows_of(["a b", "c d"])
    with pytest.raises(UserError, match="after.json is not scored; run: python inference.py --score VLM_NAME "
                                        "--descriptions"):
        compare(capsys, tmp_path, scored, bare)
    with pytest.raises(UserError, match="no concept in common"):
        compare(capsys, tmp_path, scored, rows_of(["a b", "c d"], ("x", "y"), (1.0, 4.0)))


@pytest.mark.parametrize("name", ["base_model_name", "dataset", "vlm_name"])
def test_files_of_different_models_data_sets_or_vlms_are_not_compared(tmp_path, capsys, name):
    rows = rows_of(["a b", "c d"], rewards=(1.0, 3.0))
    about = {"base_model_name": "m", "dataset": "cub", "vlm_name": "v", "model_name": "m", "seed": 0}
    with pytest.raises(UserError, match=f"--before is of {name} {about[name]}, and --after of other, .*; make one of"):
        compare(capsys, tmp_path, rows, rows, manifests=(about, about | {name: "other"}))
    for other in (about | {"model_name": "m/adapter", "seed": 1}, {}):  # an adapter, another seed; no manifest
        assert compare(capsys, tmp_path, rows, rows, manifests=(about, other))
    descriptions.write(str(tmp_path / "second.json"), rows, about | {"seed": 1})
    seeds = ["--after", *(str(tmp_path / f"{name}.json") for name in ("before", "second"))]
    assert compare(capsys, tmp_path, rows, rows, *seeds, manifests=(about, about))[3].startswith("| after (4) |")


def test_the_difference_is_paired_by_concept_over_seeds():
    concepts = [f"c{i}" for i in range(12)]
    before = [{"concept": name, "reward": float(i * 10 + seed)} for seed in range(3) for i, name in enumerate(concepts)]
    after = [row | {"reward": row["reward"] + 1 + 0.1 * i} for i, row in enumerate(before)]
    gains = [1 + 0.1 * (i + 12) for i in range(12)]  # means over the three seeds
    found = descriptions.difference(before, [*after, {"concept": "other", "reward": 1.0},
                                             {"concept": "c0", "reward": None}])
    assert found["concepts"] == 12
    assert found["mean"] == pytest.approx(statistics.fmean(gains))
    assert found["error"] == pytest.approx(statistics.stdev(gains) / 12 ** 0.5)  # though concepts differ by far more
    assert found["p"] == pytest.approx(2 / 2 ** 12)
    alone = descriptions.difference(before[:1], after[:1])
    assert (alone["mean"], alone["error"], alone["p"]) == (1.0, None, 1.0)


def test_equal_rewards_can_be_compared(tmp_path, capsys):
    rows = rows_of(["a b", "c d"], rewards=(2.0,))
    assert any(line.startswith("Difference, paired by concept: 0.00") for line in compare(capsys, tmp_path, rows, rows))


def test_no_examples_can_be_asked_for(tmp_path, capsys):
    rows = rows_of(["a b", "c d"], rewards=(2.0, 3.0))
    assert len(compare(capsys, tmp_path, rows, rows, "--num_examples", "0")) <= 9


def test_descriptions_need_no_torch():
    """They are read where there is only an inspector, or only an engine for language models."""
    import subprocess

    code = "import sys; sys.modules['torch'] = None; from utils.ex2 import descriptions"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
