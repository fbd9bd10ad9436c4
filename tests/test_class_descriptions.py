"""scripts/build_class_descriptions.py: a text pool about the classes of a data set, by a language model."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fault_server
import pytest
from builders import ROOT
from fault_server import FaultServer

from scripts import build_class_descriptions as build
from utils.analysis import zeroshot
from utils.data import datasets
from utils.ex2 import descriptions
from utils.language import generation

SCRIPT = "scripts.build_class_descriptions"
QUESTIONS = ["Which colors does {concept} have? At most ten words.", "What is {concept}?",
             "Where is {concept} usually seen?", "What does a close-up of {concept} show?"]
QUESTION = "Which colors does sea lion have? Answer with a phrase of at most ten words."
NAMES = datasets.class_names("emoji")


# Answers become lines.

@pytest.mark.parametrize("answer, line", [
    ("Brown fur with white tips.", "Brown fur with white tips"),
    ("  brown\tand   grey \u2028", "brown and grey"),
    ("1. Brown fur", "Brown fur"),
    ("12) Brown fur", "Brown fur"),
    ("(a) Brown fur", "Brown fur"),
    ("- • Brown fur;", "Brown fur"),
    ("## **Brown** fur", "Brown fur"),
    ('"Brown fur."', "Brown fur"),
    ("“Brown fur” and ‘grey’ skin", "Brown fur and 'grey' skin"),
    ("'Brown fur'", "Brown fur"),
    ("A seal’s skin!", "A seal's skin"),
    ("Brown fur. It is wet.", "Brown fur"),
    ("Brown fur! it is wet", "Brown fur"),
    ('"Brown fur." It is wet.', "Brown fur"),
    ("Brown fur (wet.) And more", "Brown fur (wet.)"),
    ("A St. Bernard's coat, e.g. brown. It is wet.", "A St. Bernard's coat, e.g. brown"),
    ("About 2.5 metres long", "About 2.5 metres long"),
    ("3 dark stripes", "3 dark stripes"),
    ("Sure! Here is a phrase of ten words: brown fur, wet skin.", "brown fur, wet skin"),
    ("Here are some of them:\n\n1. Brown fur\n2. Wet skin", "Brown fur"),
    ("The colors are:\nbrown", "brown"),
    ("Answer: Brown", "Brown"),
    ("sure-footed on rocks", "sure-footed on rocks"),
    ("Wet skin: dark", "Wet skin: dark"),
    ("\n\nBrown fur\nWet skin", "Brown fur"),
    ("Brown fur...", "Brown fur"),
    ("word " * 20, "word " * 19 + "word"),
])
def test_an_answer_becomes_a_line(answer, line):
    assert build.clean(answer, QUESTION, "sea lion") == (line, None)


@pytest.mark.parametrize("answer, reason", [
    ("", "empty"), ("...", "empty"), ("\n \n", "empty"), ("Sure!", "empty"), ("Here is a description:", "empty"),
    ("🐦🐯", "empty"), ("Brown \ufffd fur", "empty"),
    ("I'm sorry, but I can't see pictures.", "refusal"), ("As an AI language model, I have no eyes.", "refusal"),
    ("Brown. As a language model I cannot tell more.", "refusal"), ("I am unable to help", "refusal"),
    ("I’d be happy to help", "refusal"), ("I think it is brown", "refusal"), ("Please give me a picture", "refusal"),
    ("Unfortunately, I don't know", "refusal"), ("I cannot say", "refusal"), ("We apologize for that", "refusal"),
    (QUESTION, "echo"), ("Sea lion", "echo"), ("The sea lion.", "echo"), ("What is a seal?", "echo"),
    ("It answers with a phrase of at most six", "echo"), ("Brown and grey (ten words)", "echo"),
    ("word " * 21, "too_long"),
])
def test_what_cannot_be_a_line_is_dropped(answer, reason):
    assert build.clean(answer, QUESTION, "sea lion")[1] == reason


def test_a_class_of_many_words_may_be_named():
    concept = "a very old grey sea lion"
    assert build.clean(f"the brown fur of {concept}", f"What is {concept} made of?", concept)[1] is None
    assert build.clean(f"the colors of {concept} are", "Name the colors of sea lion", "sea lion")[1] is None


def test_a_line_is_kept_once():
    rows = [{"description": text, "question": QUESTION, "concept": "sea lion"} for text in (
        "Brown fur.", "- brown FUR", "Grey fur", "", "Straße", "STRASSE", "sorry")]
    assert build.pool(rows) == (["Brown fur", "Grey fur", "Straße"],
                                {"empty": 1, "refusal": 1, "echo": 0, "too_long": 0, "repeated": 2})


def test_the_repository_s_questions_ask_for_a_short_phrase_each():
    found = descriptions.read_questions(str(ROOT / "configs" / "class_questions.txt"))
    assert len(found) == len(set(found)) == 30
    assert all("at most ten words" in question.lower() for question in found)


# Runs.

@pytest.fixture
def options(tiny_lm, tmp_path):
    """Options of a run that takes a moment; its files go to a folder of their own."""
    (tmp_path / "questions.txt").write_text("\n".join(QUESTIONS))
    return ["--dataset", "emoji", "--num_classes", 3, "--model_name", tiny_lm,
            "--questions", tmp_path / "questions.txt", "--max_new_tokens", 5, "--batch_size", 2,
            "--output_filepath", tmp_path / "out" / "pool.txt"]


HF = ["--backend", "hf", "--device", "cpu"]


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_a_pool_of_the_first_classes_by_transformers(run_script, options, tiny_lm, tmp_path):
    code, out, err = run_script(SCRIPT, *options, *HF)
    assert code == 0, err
    assert sorted(files(tmp_path / "out")) == ["pool.json", "pool.jsonl", "pool.manifest.json", "pool.txt"]
    texts = zeroshot.read_texts(tmp_path / "out" / "pool.txt")
    rows, manifest = descriptions.read(str(tmp_path / "out" / "pool.json"))
    assert [(row["concept"], row["question"], row["seed"]) for row in rows] == [
        (name, question.replace("{concept}", name), 4 * i + j)
        for i, name in enumerate(NAMES[:3]) for j, question in enumerate(QUESTIONS)]
    assert (manifest["generated"], manifest["kept"]) == (12, len(texts))
    assert sum(manifest["dropped"].values()) == 12 - len(texts)
    assert len(texts) > 3
    assert all(any(text.split()[0] in row["description"] for row in rows) for text in texts)
    for name, value in {"model_name": tiny_lm, "backend": "hf", "dataset": "emoji", "concepts": NAMES[:3],
                        "questions": QUESTIONS, "seed": 0, "max_new_tokens": 5, "most_words": 20}.items():
        assert manifest[name] == value, name
    assert out.startswith("12 answers; dropped: empty ")
    assert f"{len(texts)} texts -> {tmp_path / 'out' / 'pool.txt'}" in out

    again = files(tmp_path / "out")
    assert run_script(SCRIPT, *options, *HF)[0] == 0
    assert files(tmp_path / "out") == again
    assert run_script(SCRIPT, *options, *HF, "--seed", 50)[0] == 0
    assert not set(zeroshot.read_texts(tmp_path / "out" / "pool.txt")) & set(texts)


ANSWERS = ["1. Red fur with white tips.", '"Long, thin tail"', "I'm sorry, but I can't see pictures.",
           "As an AI, I have no eyes.", "red fur with WHITE tips", "", f"Where is {NAMES[1]} usually seen?",
           "word " * 25,
           "Sure! Here is a phrase:\n- Curled tail and round ears. They are brown.", f"A {NAMES[2]}.",
           "Green leaves\nBrown bark", "..."]


def test_a_server_s_answers_become_a_pool(run_script, options, tmp_path, monkeypatch):
    monkeypatch.setattr(fault_server, "question_of", lambda request: "completion")  # it takes chats, here completions
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def answer(handler):
        text = ANSWERS[handler.request_body["seed"]]
        handler.reply(200, {"id": "1", "object": "text_completion", "created": 0, "model": "judge",
                            "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None, "text": text}]})

    with FaultServer(script=[answer] * 12) as server:
        code, out, err = run_script(SCRIPT, *options, "--backend", "server", "--base_url", server.url)
    assert code == 0, err
    assert (tmp_path / "out" / "pool.txt").read_text() == (
        "Red fur with white tips\nLong, thin tail\nCurled tail and round ears\nGreen leaves\n")
    rows, manifest = descriptions.read(str(tmp_path / "out" / "pool.json"))
    assert [row["description"] for row in rows] == [text.strip() for text in ANSWERS]
    assert (manifest["generated"], manifest["kept"], manifest["dropped"]) == (
        12, 4, {"empty": 2, "refusal": 2, "echo": 2, "too_long": 1, "repeated": 1})
    assert "12 answers; dropped: empty 2, refusal 2, echo 2, too long 1, repeated 1\n4 texts -> " in out


def test_a_run_that_was_killed_goes_on_where_it_stopped(run_script, options, tmp_path, monkeypatch):
    options[3] = 20  # classes: 80 answers, two at a time
    command = [sys.executable, "-m", SCRIPT, *map(str, [*options, *HF])]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
        partial = tmp_path / "out" / f"pool{descriptions.KEPT}"
        deadline = time.monotonic() + 600
        while not (partial.is_file() and partial.read_bytes().count(b"\n") > 4):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait(20) == -signal.SIGKILL
    assert list(files(tmp_path / "out")) == [partial.name]
    kept = [json.loads(line) for line in partial.read_text().split("\n")[1:-1]]
    own, seeds = generation.with_transformers, []
    monkeypatch.setattr(generation, "with_transformers", lambda *a: seeds.extend(a[3]) or own(*a))
    assert run_script(SCRIPT, *options, *HF)[0] == 0
    assert seeds == list(range(len(kept), 80))
    resumed = files(tmp_path / "out")
    assert [row["description"] for row in descriptions.read(str(tmp_path / "out" / "pool.json"))[0]][:len(kept)] == kept

    assert run_script(SCRIPT, *options[:-1], tmp_path / "whole" / "pool.txt", *HF)[0] == 0
    assert files(tmp_path / "whole") == resumed


def test_a_class_is_asked_about_once_where_names_repeat(run_script, options, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "class_names", lambda name, path: ["cat", "dog", "cat", "owl"])
    assert run_script(SCRIPT, *options, *HF)[0] == 0
    assert descriptions.read(str(tmp_path / "out" / "pool.json"))[1]["concepts"] == ["cat", "dog", "owl"]


# What the user can mend.


def test_a_library_that_is_not_there_is_named(refused, options, monkeypatch):
    monkeypatch.delitem(sys.modules, "utils.light", raising=False)  # may have been imported by another test
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert "the class names of imagenet need open_clip, which is not in this environment" in refused(
        SCRIPT, *options, "--dataset", "imagenet")


def test_answers_that_are_all_dropped_make_no_pool(refused, options, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "clean", lambda *_: ("", "empty"))
    assert "none of 12 answers can be a line of a pool ({'empty': 12, " in refused(SCRIPT, *options, *HF)
    assert not (tmp_path / "out" / "pool.txt").exists()
