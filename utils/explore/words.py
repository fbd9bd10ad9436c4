"""The words of a text under the picture, each with its own heat map: which word speaks to which patch."""
import numpy as np

from utils.analysis import pairs
from utils.cli import UserError, describe
from utils.explore import html
from utils.explore.session import Session, read_lines
from utils.plots import sides
from utils.report.page import overlay
from utils.runs import commands
from utils.runs.components import Component

HEADS = 3  # pairs of heads that are named for the open word
SHOWN = {"<start>": "(start)", "<end>": "(end)"}


def chosen(session: Session, texts: str, word: str) -> tuple[str, int] | None:
    """The text and the place of the word that `word` names, such as `2 a red apple`; None for one that is not among the
    texts, one a line."""
    place, _, text = word.partition(" ")
    if text not in read_lines(texts) or not place.isdecimal() or int(place) >= len(session.words(text)):
        return None
    return text, int(place)


def view(session: Session, query: str, texts: str, word: str) -> str:
    """The view, as HTML: of each text its words, and with one open, the heat maps of that text's words, on one
    scale."""
    try:
        opened, lines = chosen(session, texts, word), []
        for text in read_lines(texts):
            lines.append({"title": text, "words": [
                {"name": SHOWN.get(name, name), "key": f"{place} {text}", "map": None}
                for place, name in enumerate(session.words(text))]})
    except UserError as error:
        return html.render("note", text=describe(error))
    if opened is None:
        return html.render("words", texts=lines, open="", picture=None, caption=None, ways=None,
                           limit=None, command=None)
    text, place = opened
    found, picture = session.pairs(query, text), session.seen(query)
    panels = pairs.panels(found)
    limit = max(float(np.abs(patches).max()) for *_, patches in panels)
    words = next(line["words"] for line in lines if line["title"] == text)
    for shown, (_, value, patches) in zip(words, panels, strict=True):
        shown |= {"value": value, "map": html.image(overlay(picture, patches, limit), 96)}
    _, value, patches = panels[place]
    about = {head: session.about(Component.parse(head)) for head in found.image_heads}
    return html.render("words", texts=lines, open=words[place]["key"], limit=limit, command=command(session, text),
                       ways=pairs.top_heads(found, HEADS, about)[place]["pairs"],
                       picture=html.image(overlay(picture, patches, limit)),
                       caption=(words[place]["name"], value, float(patches.sum()), found.cosine,
                                found.cosine - sum(value for _, value, _ in panels)))


def command(session: Session, text: str) -> str:
    """The command line that draws the same of a file."""
    return commands.line("compute_pairs", {**session.of_model, "image": "PICTURE.png", "text": text,
                                           "top_heads": HEADS})


def save(session: Session, kind: str, query: str, texts: str, word: str) -> tuple[str, str]:
    """The name and the content of what is saved of the text whose word is open: the "png" of its words, or the "csv" of
    all pairs."""
    opened = chosen(session, texts, word)
    if opened is None:
        raise UserError("click a word first")
    found = session.pairs(query, opened[0])
    if kind == "csv":
        return "words.csv", html.table([["", *found.columns], *(
            [row, *values] for row, values in zip(found.rows, found.values.tolist()))])
    with session.lock:
        return "words.png", html.png(lambda file: sides.pairs(
            session.seen(query), [(f"{found.text} ({found.cosine:.3f})", pairs.panels(found))],
            f"{session.run.place.model}: what each patch and each word add together", file))
