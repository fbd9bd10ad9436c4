"""Heads: a table of all, what each does for which images, and the accuracy with several of them switched off."""
import re

import numpy as np

from utils.analysis import retrieval
from utils.cli import UserError
from utils.explore import html
from utils.explore.session import Session, read_lines
from utils.plots import sheets
from utils.report.page import overlay
from utils.runs.components import Component

SORTS = {"layer": "layer", "variance": "variance", "accuracy lost without it": "lost", "attribute share": "share"}
STRIP = 6  # images at either end and in the middle


def table_rows(session: Session, find: str = "", sort: str = "layer") -> list[dict]:
    """What the table says of each head that fits the words to `find`, sorted."""
    largest, rows = session.variances.max(initial=0) or 1.0, []
    for column, head in enumerate(session.run.heads):
        shares = {name: float(values[column]) for name, values in session.attributes.items()}
        attribute = max(shares, key=shares.get, default=None)
        rows.append({"head": str(head), "layer": head.layer, "number": head.head, "about": session.about(head),
                     "attribute": attribute, "share": shares.get(attribute), "variance": session.variances[column],
                     "relative": session.variances[column] / largest, **session.alone.get(head, {}),
                     "texts": [entry["text"] for entry in session.texts_of(column)]})
    rows = [row for row in rows if _fits(row, find)]
    keys = {"layer": lambda row: -row["layer"], "variance": lambda row: -row["variance"],
            "lost": lambda row: row.get("change", 0), "share": lambda row: -(row["share"] or 0)}
    return sorted(rows, key=keys[SORTS.get(sort, "layer")])


def _fits(row: dict, find: str) -> bool:
    """Whether each word to find begins a word of what a row says; `5.4`, `layer 5` and `head 4` mean these alone."""
    said = f" {row['about']} {row['attribute'] or ''} {' '.join(row['texts'])}".lower().replace("colour", "color")
    find = find.lower().replace("colour", "color")
    for word, own in (("layer", row["layer"]), ("head", row["number"])):
        given = rf"\b{word} (\d+)\b"
        if any(int(number) != own for number in re.findall(given, find)):
            return False
        find = re.sub(given, "", find)
    return all(word == row["head"] if re.fullmatch(r"\d+\.\d+", word) else f" {word}" in said for word in find.split())


def table(session: Session, find: str, sort: str, head: str, off: str) -> str:
    """The table, as HTML."""
    chosen = {str(session.run.heads[column]) for column in session.columns(off)}
    return html.render("head_table", rows=table_rows(session, find, sort), open=head, off=chosen,
                       total=len(session.run.heads), shares_are=session.shares_are,
                       with_accuracy=session.classifier is not None, one=100 / len(session.run),
                       command=session.report)


def switches(session: Session, query: str, off: str) -> str:
    """What is lost with heads switched off, over the run and of the picture, as HTML."""
    columns, rows = session.columns(off), accuracies(session, off)
    classes, why = None, None
    try:
        classes = list(zip(session.top_classes(query, []), session.top_classes(query, columns)))
    except UserError as error:
        why = str(error)
    return html.render("switches", heads=[str(session.run.heads[column]) for column in columns], rows=rows,
                       classes=classes, why=why, images=len(session.run), command=switch_command(session, columns))


def accuracies(session: Session, off: str) -> list[tuple[str, float, float]]:
    """Accuracies by name, overall and of groups where there are some: as they are, and with the heads switched off."""
    before, after = session.accuracy([]), session.accuracy(session.columns(off))
    names = ["overall", *(["average of groups", "worst group"] if session.group is not None else []), *before["groups"]]
    return [(name, *(figures["groups"].get(name, figures.get(name.replace(" ", "_"))) for figures in (before, after)))
            for name in names]


def switch_command(session: Session, columns: list[int]) -> str:
    """The command that switches the same heads off."""
    named = ",".join(str(session.run.heads[column]) for column in columns)
    return session.line("compute_use_specific_heads", keep_last_layers=len(session.run.layers), keep_mlps=True,
                        heads=named) if columns else ""


def head_list(session: Session, off: str) -> str:
    """The heads that are off as a list of heads for compute_use_specific_heads.py --heads_file."""
    import yaml

    columns, manifest = session.columns(off), session.run.manifest or {}
    if not columns:
        raise UserError("no head is switched off; switch some off in the table")
    content = {"model": session.run.place.model_name, "dataset": session.run.place.dataset,
               "heads": {"switched_off": " ".join(str(session.run.heads[column]) for column in columns)}}
    if "pretrained" in manifest:
        content["pretrained"] = manifest["pretrained"]
    return yaml.safe_dump(content, sort_keys=False)


def ends(session: Session, head: str, text: str) -> tuple[int, str, np.ndarray, dict[str, list[int]]]:
    """A head's column, the text it is looked at along, its scores [b] for that, and the images with the highest, middle
    and lowest; without a text, its first one."""
    columns = session.columns(head)
    if len(columns) != 1:
        raise UserError("click one head in the table")
    column, = columns
    first = session.first_text(column)
    if not text.strip() and first is None:
        raise UserError(f"head {head} has no texts here; type a text, or make some: "
                        + session.missing.get("texts of heads", "compute_complete_text_set.py takes more layers"))
    text = read_lines(text)[0] if text.strip() else first["text"]
    scores = session.scores(column, session.embed((text,))[0])
    order = np.argsort(-scores, kind="stable")
    number = min(STRIP, max(1, len(order) // 3))
    middle = (len(order) - number) // 2
    return column, text, scores, {"Highest": order[:number].tolist(), "Middle": order[middle:middle + number].tolist(),
                                  "Lowest": order[::-1][:number].tolist()}


def detail(session: Session, query: str, head: str, text: str) -> str:
    """All that is known of one head, as HTML."""
    if not head:
        return html.render("note", text="Click a head to see its images.")
    column, text, scores, found = ends(session, head, text)
    part = Component.parse(head)

    def shown(row: int, **more) -> dict:
        return {"row": row, "image": html.image(session.picture(row, 96), 96), "label": session.label(row), **more}

    strips = [{"title": title, "images": [shown(row, value=float(scores[row])) for row in rows]}
              for title, rows in found.items()]
    maps = []
    if session.model is not None:
        patches = [(row, session.tokens(str(row), (text,))) for row in found["Highest"][:3] + found["Lowest"][:3]]
        if all(part.layer in tokens.scores for _, tokens in patches):
            patches = [(row, tokens.patches(part.layer, part.head)[0, 0].cpu().numpy()) for row, tokens in patches]
            limit = max(float(np.abs(values).max()) for _, values in patches)
            maps = [{**shown(row, value=float(values.sum())),
                     "image": html.image(overlay(session.seen(str(row)), values, limit), 192)}
                    for row, values in patches]
    near, why = [], None
    try:
        index, similarity = retrieval.by_images(session.run, [[column]], session.vectors(query, [[column]]), STRIP,
                                                [session.row(query)] if session.row(query) is not None else None)
        near = [shown(int(row), value=float(value)) for row, value in zip(index[0, 0], similarity[0, 0])]
    except UserError as error:
        why = str(error)
    return html.render("head", head=head, part=part, about=session.about(part), text=text, strips=strips, maps=maps,
                       near=near, why=why, texts=session.texts_of(column), shares_are=session.shares_are,
                       shares=[(name, float(values[column])) for name, values in session.attributes.items()])


def save(session: Session, kind: str, find: str, sort: str, head: str, text: str, off: str) -> tuple[str, str]:
    """The name and the content of what is saved: the "csv" of the table, of what is lost with heads off
    ("switches-csv"), or of what the open head adds to all images ("head-csv"); the "png" of the open head's images; or
    the "list" of heads that are off."""
    if kind == "list":
        name = f"{session.run.place.dataset}_{session.run.place.model_name}_switched_off.yaml"
        return name, html.uri(head_list(session, off).encode(), "application/yaml")
    if kind == "switches-csv":
        return "switched_off.csv", html.table([["accuracy", "before", f"without {off}" if off.strip() else "after"],
                                               *accuracies(session, off)])
    if kind == "head-csv":
        _, text, scores, _ = ends(session, head, text)
        return f"head_{head}.csv", html.table([["index", "class", f"added to the cosine with: {text}"], *(
            [row, session.label(row), float(score)] for row, score in enumerate(scores))])
    if kind == "png":
        column, text, _, found = ends(session, head, text)
        pictures = [[session.picture(row, 96) for row in found[end]] for end in ("Highest", "Lowest")]
        row = f"{session.run.heads[column]}:  {text}", pictures[0], pictures[1][::-1]
        with session.lock:
            return f"head_{head}.png", html.png(lambda file: sheets.head_sheet(
                [row], file, f"{session.title}: images by what the head adds to the cosine with the text"))
    figures = ("head", "about", "attribute", "share", "variance", "accuracy", "change", "interval", "lost", "gained")
    rows = table_rows(session, find, sort)
    return "heads.csv", html.table([[*figures, "texts"], *(
        [*(" to ".join(f"{bound:.3f}" for bound in row["interval"]) if name == "interval" and name in row
           else row.get(name) for name in figures), "; ".join(row["texts"])] for row in rows)])
