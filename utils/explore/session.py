"""What the page asks of: a run, the model that made it, and what other scripts found in it. Nothing is written."""
import functools
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils.analysis import ablation, alignment, groups, heatmaps, pairs, retrieval, truth, zeroshot
from utils.analysis.names import naming
from utils.cli import UserError
from utils.data import pictures
from utils.data.datasets import Images
from utils.decompose import registers
from utils.decompose.decomposer import Decomposer
from utils.decompose.terms import TokenTerms
from utils.decompose.texts import TextDecomposer
from utils.models.loading import load_text_side
from utils.models.model import Model
from utils.report import results
from utils.runs import commands
from utils.runs.components import Component, check_heads, parse_heads
from utils.runs.files import Place, blocks
from utils.runs.run import Run

MOST_TEXTS, LONGEST_TEXT = 8, 300       # that a view has room for
MOST_BYTES, MOST_PICTURES = 20 << 20, 16  # of a picture that is given, and of those that are kept
ROOT = Path(__file__).resolve().parents[2]  # where the scripts are
SMALL = 1 << 28  # numbers in the arrays, up to which scripts that read all of them take less than a minute
PICTURE_SIDE = 192  # pixels of a data set's image on the page


@dataclass
class Session:
    """A run and all that the page says of it. `missing` holds, by what is not there, the line that says how to make
    it."""
    run: Run
    images: Images
    rows: np.ndarray            # [b]: of each image of the run, its index in the data set
    model: Model | None
    maps: alignment.Maps | None
    clip: Model                 # whose texts go with the run
    pretrained: str | None = None  # as it was given
    data_path: str | None = None
    texts: dict = field(default_factory=dict)     # of heads, by compute_complete_text_set.py
    pool: np.ndarray | None = None                # [m, d], the embeddings of its texts
    classifier: np.ndarray | None = None          # [d, classes]
    names: dict[Component, dict] = field(default_factory=dict)  # what compute_head_names.py says of heads
    report: str = ""                              # the command of make_report.py, which shows the same heads
    missing: dict[str, str] = field(default_factory=dict)
    given: dict[str, Image.Image] = field(default_factory=dict)  # pictures that were dropped in, by their names
    taken: int = 0                                # pictures that were ever dropped in
    lock: threading.RLock = field(default_factory=threading.RLock)  # a model answers one question at a time

    def __post_init__(self):
        self.tokens = functools.lru_cache(8)(self._tokens)
        self.embed = functools.lru_cache(64)(self._embed)
        self.words = functools.lru_cache(16)(self._words)
        self.pairs = functools.lru_cache(4)(self._pairs)
        self.decomposer = self.model and Decomposer(self.model, registers=registers.recorded(self.run.manifest))

    # Pictures. A query is the number of an image of the run, or the name of one that was given.

    def take(self, content: bytes, name: str) -> str:
        """Keep a picture that was given, in memory alone; returns its query. Raises UserError for what is none."""
        name = " ".join(name.split())[:60] or "picture"
        picture = pictures.read_given(BytesIO(content), name)
        picture.thumbnail((2048, 2048))
        with self.lock:
            self.taken += 1
            query = f"{name} ({self.taken})" if name in self.given or name.isdigit() else name
            self.given[query] = picture
            while len(self.given) > MOST_PICTURES:
                del self.given[next(iter(self.given))]
        return query

    def row(self, query: str) -> int | None:
        """The image of the run that a query names; None for a picture that was given. Raises UserError for neither."""
        if query in self.given:
            return None
        if not query.isdecimal():
            raise UserError(f"{query!r} is no picture that is kept here; drop it in again, or give the number of an "
                            f"image, 0 to {len(self.run) - 1}")
        if int(query) >= len(self.run):
            raise UserError(f"image {query}: the run has the images 0 to {len(self.run) - 1}")
        return int(query)

    def picture(self, query: str | int, side: int | None = None) -> Image.Image:
        """A picture; drawn scenes at that side, or else at the model's."""
        row = self.row(str(query))
        if row is None:
            return self.given[query]
        with self.lock:
            self.images.draw_at(side or (self.model.image_size[0] if self.model else PICTURE_SIDE))
            return self.images.read(self.rows[row])[0].convert("RGB")

    @property
    def title(self) -> str:
        """The run in words."""
        place = self.run.place
        folder = commands.elsewhere(place.folder)
        return f"{place.model} on {place.name}" + (f", in {folder}" if folder else "")

    def label(self, row: int) -> str:
        """The class of an image of the run."""
        return self.images.class_of(self.run.labels[row])

    def caption(self, query: str) -> str:
        """A query in words."""
        row = self.row(query)
        return query if row is None else f"image {row}: {self.label(row)}"

    # Texts and heat maps

    def _embed(self, texts: tuple[str, ...]) -> np.ndarray:
        with self.lock:
            if cut := self.clip.cut(list(texts)):
                raise UserError(f"{texts[cut[0]]!r} has more tokens than the model reads; shorten it")
            return self.clip.embed_texts(list(texts)).cpu().numpy()

    def _tokens(self, query: str, texts: tuple[str, ...]) -> TokenTerms:
        """What components and tokens of a picture add to its similarity with texts."""
        if self.model is None:
            raise UserError(f"the maps that made the arrays are not in {self.run.place.folder}; put them beside the "
                            "arrays, or make both again with compute_alignment.py")
        directions = torch.from_numpy(self.embed(texts)).to(self.model.device)[:, None]
        with self.lock:
            patch_size = None if self.maps else self.decomposer.patch_size
            pixels, _ = heatmaps.prepare(self.picture(query), self.model, patch_size)
            return self.decomposer.tokens(pixels, directions, self.maps and (self.maps.weight, self.maps.bias))

    @functools.cached_property
    def speller(self) -> TextDecomposer:
        """What takes texts apart. Raises UserError where pictures or texts of the run cannot be paired."""
        if self.maps or self.model is None:
            raise UserError("words are paired with patches for CLIPs alone, and the arrays of this run were mapped")
        return TextDecomposer(self.clip)

    def _words(self, text: str) -> list[str]:
        """The names of a text's words."""
        with self.lock:
            return self.speller.names(text)

    def _pairs(self, query: str, text: str) -> pairs.Pairs:
        """The cosine of a picture and a text, pair by pair of a patch and a word."""
        with self.lock:
            pixels, _ = heatmaps.prepare(self.picture(query), self.model, self.decomposer.patch_size)
            return pairs.compute(self.decomposer, self.speller, pixels, text)

    def seen(self, query: str) -> Image.Image:
        """What the model sees of a picture, at a size for the page."""
        picture = self.picture(query, PICTURE_SIDE)
        if self.model and (self.maps or self.decomposer.patch_size is None):
            picture = pictures.shape(picture, self.model.preprocess, max(1, PICTURE_SIDE / self.model.image_size[0]))
        return picture

    def vectors(self, query: str, ways: Sequence[retrieval.Way]) -> np.ndarray:
        """What components of a picture write, [w, 1, d]: read from the run, or computed."""
        row = self.row(query)
        if row is not None:
            return retrieval.vectors(self.run, [row], ways)
        if self.maps or self.model is None:
            raise UserError("the components of this run were mapped, and those of a picture that is dropped in are "
                            "not; take an image of the data set")
        with self.lock, torch.no_grad():
            return retrieval.of_pictures(self.run, self.model, [self.given[query]], ways)

    # Figures of the run, each computed when it is asked for first

    @functools.cached_property
    def means(self) -> np.ndarray:
        return self.run.means()

    @functools.cached_property
    def whole(self) -> np.ndarray:
        """All representations [b, d]."""
        return np.concatenate([self.run.whole(block) for block in blocks(len(self.run))])

    @functools.cached_property
    def variances(self) -> np.ndarray:
        return self.run.variances(slice(len(self.run.heads)))

    @functools.cached_property
    def alone(self) -> dict[Component, dict]:
        """What `ablation.single_heads` says of every head; nothing without a classifier."""
        return {} if self.classifier is None else ablation.single_heads(self.run, self.classifier, len(self.run.layers))

    @property
    def shares_are(self) -> str | None:
        """What `attributes` are: the truth where it is known, or what the CLIP itself answers where heads are named."""
        return "Known truth" if self.images.scenes else "Attribute share" if self.names else None

    @functools.cached_property
    def attributes(self) -> dict[str, np.ndarray]:
        """The share of each head's variance that attributes explain [heads], by attribute; none where none is known."""
        if self.images.scenes:
            scenes = [self.images.scenes[row] for row in self.rows]
            return truth.explained(self.run, truth.codes(scenes), slice(len(self.run.heads)))
        shares = [self.names.get(head, {}).get("shares", {}) for head in self.run.heads]
        return {name: np.array([own.get(name) or 0.0 for own in shares]) for name in dict.fromkeys(
            name for own in shares for name in own)}

    @functools.cached_property
    def group(self) -> np.ndarray | None:
        return groups.of_images(self.run, self.data_path)

    def accuracy(self, off: Sequence[int]) -> dict:
        """Figures of `groups.accuracies` with these components replaced by their means."""
        right = ablation.right_without(self.run, self.whole, self.means, self.need_classifier(), off)
        return groups.accuracies(right, self.group, groups.names(self.run.place.dataset))

    def top_classes(self, query: str, off: Sequence[int], number: int = 5) -> list[tuple[str, float]]:
        """A picture's classes with the highest cosine to what is left of its representation, and these."""
        whole, moved = self.vectors(query, [None, list(off)])[:, 0]
        left = whole - (moved - self.means[list(off)].sum(axis=0, dtype=np.float64))
        scores = left @ self.need_classifier()
        order = np.argsort(-scores, kind="stable")[:number]
        return [(self.images.classes[k], float(scores[k])) for k in order]

    def need_classifier(self) -> np.ndarray:
        if self.classifier is None:
            raise UserError(self.missing["zero-shot classifier"])
        return self.classifier

    def scores(self, column: int, direction: np.ndarray) -> np.ndarray:
        """What a head adds to the similarity of every image with a direction, above its mean [b]."""
        found = self.run.whole(slice(None), slice(column, column + 1)) @ direction
        return found - found.mean(dtype=np.float64)

    def columns(self, text: str) -> list[int]:
        """The columns of heads in a text such as `5.4 5.3`; none in an empty one."""
        if not text.strip():
            return []
        heads = parse_heads(text, "heads")
        check_heads(heads, self.run.heads, "heads")
        return [self.run.heads.index(head) for head in heads]

    def about(self, head: Component) -> str:
        """What a head is about, in a few words: its name, or else its first text; empty where neither is known."""
        head = replace(head, head=head.head or 0)
        first = self.first_text(self.run.heads.index(head))
        return naming.spelled(self.names[head]["role"]) if head in self.names else first["text"] if first else ""

    def first_text(self, column: int) -> dict | None:
        """A head's first text, where it has some."""
        return next(iter(self.texts_of(column)), None)

    def texts_of(self, column: int) -> list[dict]:
        head = self.run.heads[column]
        return next((entry["texts"] for entry in self.texts.get("heads", [])
                     if (entry["layer"], entry["head"]) == (head.layer, head.head)), [])

    # Command lines

    @functools.cached_property
    def of_model(self) -> dict:
        """The options of the run's model, for scripts that load it, as it was made or is opened here."""
        known = commands.remembered(self.run.place.folder, self.run.place.model)
        return {"model": self.run.place.model, **known} | ({"pretrained": self.pretrained} if self.pretrained else {})

    def line(self, script: str, **more) -> str:
        """The command of another script on this run."""
        place = self.run.place
        return commands.line(script, {
            "model": place.model, "dataset": place.dataset, "split": place.split, "data_path": self.data_path,
            "input_dir": commands.elsewhere(place.folder), **more})


def read_lines(text: str) -> tuple[str, ...]:
    """Texts, one a line, each once. Raises UserError where there are none, too many, or one is too long."""
    lines = tuple(dict.fromkeys(" ".join(line.split()) for line in text.splitlines() if line.strip()))
    if not lines:
        raise UserError("type a text, one a line")
    if len(lines) > MOST_TEXTS:
        raise UserError(f"{len(lines)} texts, and the page has room for {MOST_TEXTS}; remove some")
    if max(map(len, lines)) > LONGEST_TEXT:
        raise UserError(f"a text has more than {LONGEST_TEXT} characters; shorten it")
    return lines


def open_session(place: Place, data_path: str | None, pool: str, texts_per_head: int, text_dir: str,
                 pretrained: str | None, device, seed: int) -> Session:
    """A session on a run. Raises UserError where the run, its images or its model are missing; all else may be."""
    run = Run.open(place.folder, place.dataset, place.model, place.split)
    images = run.images(data_path)
    rows = run.indices(images)
    model, maps = alignment.load_source(run, pretrained, device, seed)
    own = model is not None and model.encode_text is not None and maps is None
    clip = model if own else load_text_side(run.manifest, place.model, pretrained, device, seed)
    session = Session(run, images, rows, model, maps, clip, pretrained, data_path)

    def optional(what: str, read: Callable):
        try:
            return read()
        except UserError as error:
            session.missing[what] = str(error)

    session.classifier = optional("zero-shot classifier", run.classifier)
    texts = optional("text pool", lambda: zeroshot.read_texts(Path(text_dir) / f"{pool}.txt"))
    if texts:
        session.pool = optional("embedded text pool", lambda: run.texts(pool, texts))
        session.texts = optional("texts of heads", lambda: results.read_texts(
            run, pool, texts_per_head, texts, text_dir)) or {}
        session.report = session.line("make_report", text_descriptions=pool, texts_per_head=texts_per_head,
                                      text_dir=commands.elsewhere(text_dir, "text_descriptions"),
                                      pretrained=pretrained) if session.texts else ""
    session.names = optional("names of heads", lambda: naming.read(run)) or {}
    return session


def command_of(line: str) -> str | None:
    """The command in a line that says what to do, where it leaves nothing open."""
    found = re.search(r"with: (python .+)$", line)
    return found[1] if found and not {"TAG", "DIR", "&&"} & set(found[1].split()) else None


def is_small(session: Session) -> bool:
    """Whether what reads all of the run takes well under a minute."""
    return len(session.run) * len(session.run.components) * session.run.width <= SMALL


def make(command: str, progress: Callable[[float], None]) -> None:
    """Run a command that the page offers, with its progress from 0 to 1. Raises UserError with its last line."""
    _, script, *chosen = shlex.split(command)
    words = [sys.executable, str(ROOT / script), *chosen]
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, bufsize=1) as process:
        last, line = "", ""
        while letter := process.stderr.read(1):  # a bar ends its lines with a carriage return
            if letter not in "\r\n":
                line += letter
                continue
            if found := re.search(r"(\d+)%\|", line):
                progress(int(found[1]) / 100)
            last, line = line or last, ""
    if process.returncode:
        raise UserError(f"{last.removeprefix('error: ')}")
