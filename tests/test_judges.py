"""scripts/compare_judges.py: judges against the descriptions labelled by hand."""
import json

import pytest
import torch
from builders import ROOT
from sklearn.metrics import cohen_kappa_score

from utils.ex2 import inspection, verdicts, words
from utils.language import judging, loading


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_labels_are_two_hundred_descriptions_in_the_names_of_the_inspection():
    sheet = inspection.read_sheet("configs/inspection.yaml")
    labels, again = verdicts.read_labels(), verdicts.read_labels("second_pass")
    assert len(labels) == 200
    assert len(again) == 150
    assert set(again) < set(labels)
    for found in (*labels.values(), *again.values()):
        assert set(found["attributes"]) <= {*sheet["visual"], *sheet["nonvisual"]}
        assert set(found["spurious"]) <= set(sheet["spurious"])


def test_yes_over_no_is_the_difference_of_the_log_probabilities(tiny_lm):
    prompts = ["Is it red?", "Is it a very large and very old animal?", "Is it?"]
    found = judging.yes_over_no(tiny_lm, prompts, 2, torch.device("cpu"))
    tokenizer, model = loading.load_tokenizer(tiny_lm), loading.load_model(tiny_lm, loading.precision("cpu")).eval()
    for prompt, margin in zip(prompts, found):
        with torch.inference_mode():
            logs = model(torch.tensor([loading.prompt_ids(tokenizer, prompt)])).logits[0, -1].float().log_softmax(-1)
        one, other = (sum(float(logs[token].exp()) for token in {tokenizer(text)["input_ids"][0] for text in texts})
                      for texts in judging.WAYS)
        assert margin == pytest.approx(torch.tensor(one / other).log().item(), abs=0.1)  # of 16 bits, padded and not


def test_the_table_has_the_kappa_of_each_judge(run_script, tmp_path):
    code, out, err = run_script("scripts.compare_judges", "--output_dir", tmp_path)
    assert code == 0, err
    table = json.loads((tmp_path / "judges.json").read_text())
    assert list(table) == ["words", "second pass of labelling"]
    sheet = inspection.read_sheet("configs/inspection.yaml")
    lists = words.read_lists("configs/inspection_words.yaml", sheet)
    kinds = {kind: list(sheet[kind]) for kind in inspection.KINDS}
    pairs = []
    for (_, description), label in verdicts.read_labels().items():
        said = words.judge(description, lists, sheet)
        pairs.append((bool(set(said["attributes"]["attributes"]) & set(kinds["visual"])),
                      bool(set(label["attributes"]) & set(kinds["visual"]))))
    figures = table["words"]["visual"]
    assert figures["used"] == 200
    assert figures["kappa"] == pytest.approx(cohen_kappa_score(*zip(*pairs)))
    assert figures["kappa_interval"][0] < figures["kappa"] < figures["kappa_interval"][1]
    assert f"| words | {verdicts.kappa_text(table['words']['informative'])} |" in out
