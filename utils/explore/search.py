"""Search: the images of the run that are like the picture, or go with a text; by everything, an attribute, or heads."""
from utils.analysis import retrieval
from utils.explore import html
from utils.explore.session import Session, read_lines
from utils.plots import sheets
from utils.runs.components import head_list_path, read_head_list

FOUND = 12


NAMED = "heads named "


def choices(session: Session) -> list[str]:
    """What can be compared by: the whole, the roles of the list of heads of data set and model, and attributes that
    heads are named after."""
    place = session.run.place
    path = head_list_path(place.dataset, place.model_name)
    roles = read_head_list(path, place.model_name, session.run.manifest) if path.is_file() else []
    names = sorted({entry["name"] for entry in session.names.values()} - {"none", "mixed"})
    return [retrieval.WHOLE, *roles, *(NAMED + name for name in names)]


def heads_of(session: Session, by: str, heads: str) -> str:
    """The heads that are compared by, such as `5.4,5.3`; empty for the whole and for roles of the list."""
    if not heads.strip() and by.startswith(NAMED):
        heads = " ".join(str(head) for head, entry in session.names.items() if NAMED + entry["name"] == by)
    return ",".join(heads.replace(",", " ").split())


def find(session: Session, query: str, by: str, heads: str, text: str) -> list[dict]:
    """A `report` of utils/analysis/retrieval.py: what is nearest to the picture, or to a text where there is one."""
    place, heads = session.run.place, heads_of(session, by, heads)
    ways = retrieval.read_ways(session.run, [] if heads else [by or retrieval.WHOLE], heads or None,
                               head_list_path(place.dataset, place.model_name))
    columns, row, number = list(ways.values()), session.row(query), min(FOUND, len(session.run) - 1)
    if text.strip():
        text = read_lines(text)[0]
        asked, kind = text, "text"
        found = retrieval.by_texts(session.run, columns, session.embed((text,)), number)
    else:
        asked, kind = query if row is None else row, "path"
        found = retrieval.by_images(session.run, columns, session.vectors(query, columns), number,
                                    None if row is None else [row])
    about = {name: {"heads": None if way is None else [str(session.run.heads[column]) for column in way]}
             for name, way in ways.items()}
    return retrieval.report(session.run, session.images, [asked], kind, about, found, with_agreement=True)


def view(session: Session, query: str, by: str, heads: str, text: str) -> str:
    """The view, as HTML."""
    report = find(session, query, by, heads, text)
    way, = report[0]["ways"]
    found = [{"row": one["index"], "label": one["class"], "value": one["similarity"],
              "image": html.image(session.picture(one["index"], 96), 96)} for one in way["neighbors"]]
    return html.render("search", found=found, title=retrieval.title(way), text=" ".join(text.split()),
                       query=session.caption(query), command=command(session, query, by, heads, text))


def command(session: Session, query: str, by: str, heads: str, text: str) -> str | None:
    """The command line that finds the same; None for a text and single heads, for which there is none."""
    if text.strip():
        return None
    row, heads = session.row(query), heads_of(session, by, heads)
    asked = {"image": "PICTURE.png"} if row is None else {"index": row}
    way = {"heads": heads} if heads else {"property": by}
    return session.line("compute_nearest_neighbors", pretrained=session.pretrained, **asked, **way,
                        neighbors=min(FOUND, len(session.run) - 1))


def save(session: Session, kind: str, query: str, by: str, heads: str, text: str) -> tuple[str, str]:
    """The name and the content of what is saved: the contact sheet as "png", or what was found as "csv"."""
    report = find(session, query, by, heads, text)
    if kind == "csv":
        return "search.csv", html.table([["index", "class", "similarity"], *(
            [one["index"], one["class"], one["similarity"]] for one in report[0]["ways"][0]["neighbors"])])
    shown = None if text.strip() else session.picture(query, sheets.SIDE)
    with session.lock:
        return "search.png", html.png(lambda file: sheets.contact_sheet(
            report, [shown], lambda index: session.picture(index, sheets.SIDE), retrieval.title,
            f"{session.run.place.model}: {len(session.run)} images of {session.run.place.name}", file))
