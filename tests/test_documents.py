import ast
import re
import shlex
import subprocess
import sys

import pytest
from builders import ROOT, load_script

from utils import cli

# The command lines of the decomposition paper's README for the steps that are here.
PUBLISHED = """
python compute_prs.py --dataset imagenet --device cuda:0 --model ViT-H-14 --pretrained laion2b_s32b_b79k \
--data_path /imagenet
python compute_text_projection.py --dataset imagenet --device cuda:0 --model ViT-H-14 --pretrained laion2b_s32b_b79k
python compute_ablations.py --model ViT-H-14
python compute_text_set_projection.py --device cuda:0 --model ViT-L-14 --pretrained laion2b_s32b_b82k --data_path \
text_descriptions/google_3498_english.txt
python compute_text_set_projection.py --device cuda:0 --model ViT-L-14 --pretrained laion2b_s32b_b82k --data_path \
text_descriptions/image_descriptions_general.txt
python compute_complete_text_set.py --device cuda:0 --model ViT-B-16 --texts_per_head 20 --num_of_last_layers 4 \
--text_descriptions image_descriptions_general
python compute_complete_text_set.py --device cuda:0 --model ViT-L-14 --texts_per_head 20 --num_of_last_layers 4 \
--text_descriptions google_3498_english
python compute_segmentations.py --device cuda:0 --model ViT-L-14 --pretrained laion2b_s32b_b82k \
--data_path imagenet_seg/gtsegs_ijcv.mat --save_img
"""


def commands(text: str) -> list[str]:
    """All `python ...` commands of a document, in code blocks and in tables; a variable of the shell is 0."""
    text = re.sub(r"\$\w+", "0", re.sub(r"\\\n *", " ", text))
    pattern = r"(?m)(?:^ *|`|\+ |=\S+ )(python (?:-m (?:scripts|models|data)\.)?\w[^`\n#|]*)"
    return [match.strip() for match in re.findall(pattern, text) if ".py" in match or "-m " in match]


def anchors(text: str) -> set[str]:
    """The headings of a document as links name them: in lower case, hyphens for blanks, no other signs."""
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
            for heading in re.findall(r"(?m)^#+ (.*)$", text)}


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*(document.read_text(encoding="utf-8") for document in DOCUMENTS),
         *(ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) for script in sorted(ROOT.glob("*.py")))]
WRITTEN = {command: None for text in TEXTS for command in commands(text)}


@pytest.mark.parametrize("command", [*WRITTEN, *commands(PUBLISHED)])
def test_every_command_in_the_documents_and_in_the_paper_is_understood(command):
    words = shlex.split(command)[1:]
    name, rest = (words[1], words[2:]) if words[0] == "-m" else (words[0].removesuffix(".py"), words[1:])
    module = load_script(name)
    args = cli.parse(module.get_args_parser(), rest)
    pool = getattr(args, "data_path", None)
    if pool and pool.startswith("text_descriptions/"):
        assert (ROOT / pool).is_file()


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CONTRIBUTING.md", *(
    path for folder in ("configs", "data", "models", "text_descriptions")
    for path in sorted((ROOT / folder).rglob("README.md")))],
    ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_a_document_exist(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        if not link.startswith("http"):
            there = document.parent / name if name else document
            assert there.exists(), link
            assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), link


def test_every_script_is_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in ROOT.glob("*.py"):
        assert path.name in text, path.name


@pytest.mark.skipif(not sys.prefix.startswith(str(ROOT)), reason="not run from .venv: the quickstart was not covered")
def test_the_quickstart_ends_with_heads_and_files(tmp_path):
    import os

    found = subprocess.run(["bash", "scripts/quickstart.sh"], cwd=ROOT, capture_output=True, text=True, timeout=540,
                           env=os.environ | {"OUTPUT_DIR": str(tmp_path)})
    assert found.returncode == 0, found.stderr[-2000:]
    assert "whole model" in found.stdout
    assert "layer 5, head" in found.stdout
    *files, report = found.stdout.split("All of it:")[1].strip().splitlines()
    for line in files:
        assert line.strip().startswith(str(tmp_path))
        assert os.path.getsize(line.strip()) > 0
    page = tmp_path / "emoji_report_emojiclip" / "index.html"
    assert str(page) in report
    assert "a wall of purple" in page.read_text(encoding="utf-8")
    assert "kappa: " in found.stdout
    manifests = [path for path in tmp_path.glob("*.json") if "emojiclip" in path.name and "_time_" not in path.name]
    assert len(manifests) == 7  # the run, classifier, pool, ablations, texts, truth and names
    assert not list(tmp_path.glob("*.partial"))
