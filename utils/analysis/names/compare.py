"""Two runs side by side: which heads of one write what heads of the other write, and which roles both have."""
from collections.abc import Mapping

import numpy as np

from utils.analysis.names.naming import leading
from utils.runs.components import Component
from utils.runs.run import Run

IMAGES = 1000  # of which what heads write is compared, evenly spaced


def alike(run: Run, other: Run) -> np.ndarray:
    """How far heads of two runs of the same images write the same [c, c']: from 0 to 1, linear CKA, which is the
    squared correlation of all their directions with all of the other's, whatever the spaces."""
    rows = np.linspace(0, len(run) - 1, min(len(run), IMAGES)).round().astype(int)
    own, theirs = (_centred(one, rows) for one in (run, other))
    sizes = [np.array([np.linalg.norm(x.T @ x) for x in some]) for some in (own, theirs)]
    return np.array([[np.square(x.T @ y).sum() / max(a * b, 1e-30) for y, b in zip(theirs, sizes[1])]
                     for x, a in zip(own, sizes[0])])


def _centred(run: Run, rows: np.ndarray) -> list[np.ndarray]:
    """What each head wrote for some images [b, k], minus its mean."""
    found = (run.inner(rows, [column])[:, 0].astype(np.float64) for column in range(len(run.heads)))
    return [x - x.mean(axis=0) for x in found]


def roles(names: Mapping[Component, dict]) -> dict[str, dict]:
    """For each attribute the heads that go with it, and the share of all heads' variance that it explains."""
    total = sum(row["variance"] for row in names.values()) or 1.0
    found = {}
    for attribute in next(iter(names.values()))["shares"]:
        own = [str(head) for head, row in names.items() if row["name"] != "none" and attribute in leading(row)]
        held = sum(max(row["shares"][attribute], 0) * row["variance"] for row in names.values()) / total
        found[attribute] = {"heads": own, "variance": held}
    return found


def report(names: Mapping[Component, dict], others: Mapping[Component, dict],
           similarity: np.ndarray | None) -> dict:
    """What two models have in common: `roles` of each, `matches`, each head's most similar head of the other with both
    names (without `similarity` [c, c']: the same head), and the share of heads whose match has the same `agreement`."""
    heads, theirs = list(names), list(others)
    matches = []
    for c, head in enumerate(heads):
        if similarity is None:
            if head not in others:
                continue
            match, how = head, None
        else:
            best = int(similarity[c].argmax())
            match, how = theirs[best], float(similarity[c, best])
        matches.append({"head": str(head), "name": names[head]["name"], "match": str(match),
                        "match_name": others[match]["name"], "similarity": how,
                        "same": names[head]["attribute"] == others[match]["attribute"]})
    return {"roles": [roles(names), roles(others)], "matches": matches,
            "agreement": float(np.mean([row["same"] for row in matches])) if matches else None}


def table(found: dict, titles: tuple[str, str]) -> str:
    """The roles of two models as a table in Markdown."""
    first, second = found["roles"]
    lines = [f"| role | heads of {titles[0]} | variance (%) | heads of {titles[1]} | variance (%) | in |",
             "| --- " * 6 + "|"]
    for name in dict.fromkeys([*first, *second]):
        one, two = (side.get(name, {"heads": [], "variance": 0.0}) for side in (first, second))
        where = {(True, True): "both", (True, False): titles[0], (False, True): titles[1]}.get(
            (bool(one["heads"]), bool(two["heads"])), "neither")
        lines.append(f"| {name} | {len(one['heads'])} | {100 * one['variance']:.1f} | {len(two['heads'])} | "
                     f"{100 * two['variance']:.1f} | {where} |")
    return "\n".join(lines)
