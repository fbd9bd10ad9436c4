"""A picture: where it speaks for each text, and through which components."""
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from PIL import Image

from utils.explore import html, words
from utils.explore.session import Session, read_lines
from utils.plots import sheets
from utils.report.page import overlay
from utils.runs import commands
from utils.runs.components import Component

SHOWN = 10  # heads that have a bar of their own, for each text


@dataclass
class Answer:
    """What a picture's components and patches add to its similarity with texts, or to the difference of two."""
    titles: list[str]
    components: list[Component]
    parts: np.ndarray    # [m, c]
    patches: np.ndarray  # [m, rows, columns], through all heads or one
    picture: Image.Image


def ask(session: Session, query: str, texts: str, part: str, contrast: bool) -> Answer:
    """The answer for texts, one a line; `part` is the head whose heat map is shown (none: all), and with `contrast` the
    first text minus the second comes first. Raises UserError for what cannot be answered."""
    lines = read_lines(texts)
    found = session.tokens(query, lines)
    head = Component.parse(part) if part else None
    patches = found.patches(head and head.layer, head and head.head)[:, 0].cpu().numpy()
    parts, titles = found.parts[:, 0].cpu().numpy(), list(lines)
    if contrast and len(lines) > 1:
        titles.insert(0, f"{lines[0]} {html.MINUS} {lines[1]}")
        parts, patches = (np.concatenate([values[:1] - values[1:2], values]) for values in (parts, patches))
    return Answer(titles, found.components, parts, patches, session.seen(query))


def bars(session: Session, answer: Answer, row: int) -> list[dict]:
    """What a similarity is the sum of, the largest first: the heads that add or take the most, all other heads, MLPs,
    the embedding, and convolution blocks."""
    values, groups = answer.parts[row], {"MLPs": "mlp", "embedding": "embed", "convolution blocks": "conv"}
    heads = [place for place, part in enumerate(answer.components) if part.kind == "attn"]
    heads.sort(key=lambda place: -abs(values[place]))
    found = [{"name": str(answer.components[place]), "about": session.about(answer.components[place]),
              "value": float(values[place]), "head": True} for place in heads[:SHOWN]]
    if heads[SHOWN:]:
        found.append({"name": f"{len(heads) - SHOWN} other heads", "about": "", "head": False,
                      "value": float(values[heads[SHOWN:]].sum())})
    for name, kind in groups.items():
        own = [place for place, part in enumerate(answer.components) if part.kind == kind]
        if own:
            found.append({"name": name, "about": "", "value": float(values[own].sum()), "head": False})
    return sorted(found, key=lambda bar: -abs(bar["value"]))


def view(session: Session, query: str, texts: str, part: str, contrast: bool, word: str = "") -> str:
    """The view, as HTML, with the texts' words (utils/explore/words.py), of which `word` is open."""
    answer = ask(session, query, texts, part, contrast)
    limit = float(np.abs(answer.patches).max())
    rows = [{"title": title, "similarity": float(answer.parts[row].sum()),
             "patches": float(answer.patches[row].sum()), "bars": bars(session, answer, row),
             "map": html.image(overlay(answer.picture, answer.patches[row], limit))}
            for row, title in enumerate(answer.titles)]
    largest = max(abs(bar["value"]) for row in rows for bar in row["bars"]) or 1.0
    return html.render("picture", picture=html.image(answer.picture), query=query, label=session.caption(query),
                       rows=rows, largest=largest, limit=limit, part=part, command=command(session, texts, part),
                       words=Markup(words.view(session, query, texts, word)))


def command(session: Session, texts: str, part: str) -> str:
    """The command line that draws the same heat maps of a file."""
    manifest, head = session.run.manifest or {}, Component.parse(part) if part else None
    model = {"model": manifest["source_model"], "maps": session.maps.path} if session.maps else session.of_model
    return commands.line("compute_heatmaps", {**model, "image": "PICTURE.png", "layer": head and head.layer,
                                              "head": head and head.head, "text": list(read_lines(texts))})


def save(session: Session, kind: str, query: str, texts: str, part: str, contrast: bool) -> tuple[str, str]:
    """The name and the content of what is saved: the "png", or the "csv" of all components."""
    answer = ask(session, query, texts, part, contrast)
    if kind == "csv":
        header = ["text", "cosine", *map(str, answer.components)]
        return "picture.csv", html.table([header, *([title, values.sum(), *values]
                                                    for title, values in zip(answer.titles, answer.parts))])
    panels = [(title, patches, f"cosine similarity {values.sum():+.4f}\nthese patches {patches.sum():+.4f}")
              for title, values, patches in zip(answer.titles, answer.parts, answer.patches)]
    title = f"{session.run.place.model}: what each patch adds, through {f'head {part}' if part else 'all heads'}"
    with session.lock:
        return "picture.png", html.png(lambda file: sheets.heat_maps(answer.picture, panels, title, file))
