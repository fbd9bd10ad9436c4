"""scripts/warm_start.py: a language model that learns to caption, every word of every attribute once a concept."""
from collections import Counter

import pytest
import torch
from builders import ROOT
from transformers import AutoModelForCausalLM

from utils.ex2 import descriptions, truth
from utils.language import loading

QUESTIONS = descriptions.read_questions(str(ROOT / "configs" / "questions_captions.txt"))
FOUND = truth.concepts()


def test_every_word_is_said_once_of_every_concept():
    rows = truth.every_caption(FOUND, QUESTIONS)
    assert len(rows) == len(FOUND) * sum(len(words) for words in truth.WORDS.values())
    assert len({(row["question"], row["caption"]) for row in rows}) == len(rows)
    said = Counter(row["question"] for row in rows)
    for concept in FOUND:
        for question, (attribute, words) in zip(QUESTIONS, truth.WORDS.items()):
            assert said[descriptions.fill(question, concept["name"])] == len(words), attribute
    assert {"question": "In which style is a monkey drawn?", "caption": "a monkey in a flat style"} in rows
    assert {"question": "How many copies of a monkey are shown?", "caption": "two monkeys"} in rows
    assert {"question": "On which background is a monkey shown?", "caption": "a monkey on an orange background"} in rows
    assert {"question": "How large is a monkey in its picture?", "caption": "a small monkey"} in rows


def loss_of_captions(folder) -> float:
    """The mean negative log-probability of a token of some captions after their questions."""
    tokenizer = loading.load_tokenizer(str(folder))
    tokenizer.chat_template = None
    model, losses = AutoModelForCausalLM.from_pretrained(folder).eval(), []
    for row in truth.every_caption(FOUND, QUESTIONS)[::100]:
        prompt = loading.prompt(tokenizer, row["question"])
        ids = tokenizer(prompt + row["caption"], return_tensors="pt")["input_ids"]
        labels = ids.clone()
        labels[:, :len(tokenizer(prompt)["input_ids"])] = -100
        with torch.inference_mode():
            losses.append(model(input_ids=ids, labels=labels).loss.item())
    return sum(losses) / len(losses)


@pytest.mark.long
def test_the_model_learns_captions_and_is_loaded_by_its_folder(tiny_lm, run_script, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = ["--model_name", tiny_lm, "--output_dir", tmp_path / "start"]
    code, out, err = run_script("scripts.warm_start", *arguments, "--learning_rate", "1e-2")
    assert code == 0, err
    assert "960 captions" in err
    assert not (tmp_path / "start.partial").exists()
    assert loading.load_tokenizer(str(tmp_path / "start")).chat_template is None
    assert loss_of_captions(tmp_path / "start") < loss_of_captions(tiny_lm) - 1
    code, out, err = run_script("scripts.warm_start", *arguments, "--learning_rate", "1e-2")
    assert code == 0
    assert "finished already" in out
    assert "was made with other options; name another" in refused("scripts.warm_start", *arguments, "--seed", 1)


@pytest.mark.parametrize(("options", "line"), [
    (["--questions", "configs/questions.txt"], "captions answer 4 questions, for style, count, color, size"),
    (["--model_name", "nowhere.gguf"], "nowhere.gguf does not exist"),
    (["--output_dir", "configs"], "--output_dir configs holds something else"),
    (["--learning_rate", "nan"], "--learning_rate is nan")])
def test_what_cannot_be_is_refused_before_the_work(refused, tmp_path, monkeypatch, options, line):
    monkeypatch.chdir(ROOT)
    assert line in refused("scripts.warm_start", "--output_dir", tmp_path / "start", *options)
    assert not (tmp_path / "start").exists()
