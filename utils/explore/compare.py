"""Compare: the same picture and texts in two runs, of two models, or of one before and after."""
import numpy as np

from utils.explore import html, picture
from utils.explore.session import Session
from utils.plots import sheets
from utils.report.page import overlay


def ask(sessions: list[Session], query: str, texts: str) -> list[picture.Answer]:
    """The answer of each run; a picture that was given goes to both."""
    first, second = sessions
    if first.row(query) is None:
        second.given[query] = first.given[query]
    return [picture.ask(session, query, texts, "", False) for session in sessions]


def view(sessions: list[Session], query: str, texts: str) -> str:
    """The view, as HTML. Heat maps of a run have one scale; those of two models have two."""
    runs = []
    for session, answer in zip(sessions, ask(sessions, query, texts)):
        limit = float(np.abs(answer.patches).max())
        rows = [{"title": title, "similarity": float(answer.parts[row].sum()),
                 "bars": picture.bars(session, answer, row),
                 "map": html.image(overlay(answer.picture, answer.patches[row], limit))}
                for row, title in enumerate(answer.titles)]
        accuracy = None if session.classifier is None else session.accuracy([])["overall"]
        runs.append({"name": session.title, "limit": limit, "rows": rows, "accuracy": accuracy,
                     "images": len(session.run),
                     "largest": max(abs(bar["value"]) for row in rows for bar in row["bars"]) or 1.0,
                     "command": picture.command(session, texts, "")})
    return html.render("compare", runs=runs, texts=[row["title"] for row in runs[0]["rows"]])


def save(sessions: list[Session], kind: str, query: str, texts: str) -> tuple[str, str]:
    """The name and the content of what is saved: heat maps of both runs as "png", or all parts as "csv"."""
    answers = ask(sessions, query, texts)
    each = list(zip(sessions, answers))
    if kind == "csv":
        return "compare.csv", html.table([["run", "text", "component", "contribution"], *(
            [session.title, title, component, value] for session, answer in each
            for title, values in zip(answer.titles, answer.parts)
            for component, value in zip(answer.components, values))])
    panels = [(f"{session.run.place.model}: {title}", patches, f"cosine similarity {values.sum():+.4f}")
              for session, answer in each
              for title, values, patches in zip(answer.titles, answer.parts, answer.patches)]
    with sessions[0].lock:
        return "compare.png", html.png(lambda file: sheets.heat_maps(
            answers[0].picture, panels, " and ".join(session.title for session in sessions), file))
