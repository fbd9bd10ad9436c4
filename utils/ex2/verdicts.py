"""Summing up what an inspector answered: shares with intervals, examples, and how far to trust it (EX2, section 4).

A description is informative if it was said to increase knowledge, else uninformative, which the paper calls spurious;
visual or non-visual if it uses an attribute of that kind (it may be both). Spurious wording, which is not the paper's,
is any spurious kind of the inspection. Shares are of the descriptions with both questions
answered.
"""
import csv
import io
import json
from collections import Counter
from pathlib import Path

from utils.cli import UserError
from utils.ex2.inspection import KINDS, QUESTIONS, read_answers

MEASURES = {"uninformative": "uninformative (the paper's spurious)", "informative": "informative",
            "spurious": "spurious wording", "visual": "visual", "nonvisual": "non-visual",
            "only_nonvisual": "only non-visual", "informative_visual": "informative and visual",
            "informative_only_nonvisual": "informative and only non-visual"}
IN_TABLE = ("uninformative", "spurious", "visual", "nonvisual", "only_nonvisual")
WITH_EXAMPLES = ("informative_visual", "informative_only_nonvisual", "spurious")
LABELED = ("informative", "visual", "nonvisual", "spurious")  # measures that are compared with labels
# Of which of LABELED each measure is made.
PARTS = {name: (name,) for name in LABELED} | {
    "uninformative": ("informative",), "only_nonvisual": ("visual", "nonvisual"),
    "informative_visual": ("informative", "visual"),
    "informative_only_nonvisual": ("informative", "visual", "nonvisual")}
LABELS = Path("data/inspection/labels.jsonl")
NEAR_CHANCE = 0.2  # a kappa below which an inspector's verdicts say next to nothing
LABELED_DATASET = "labelled"  # answers that only serve the comparison


def judge(knowledge: dict | None, attributes: dict | None, kinds: dict) -> dict:
    """Verdicts on a description, by the names of MEASURES, from its parsed answers; None for what is unanswered.

    `kinds` maps visual, nonvisual and spurious to the names that belong to each.
    """
    verdicts = dict.fromkeys(MEASURES)
    if knowledge:
        verdicts["informative"] = knowledge["increases_knowledge"] == "yes"
        verdicts["uninformative"] = not verdicts["informative"]
    if attributes:
        used = set(attributes["attributes"])
        verdicts["visual"], verdicts["nonvisual"] = (bool(used & set(kinds[kind])) for kind in ("visual", "nonvisual"))
        verdicts["only_nonvisual"] = verdicts["nonvisual"] and not verdicts["visual"]
        verdicts["spurious"] = bool(set(attributes["spurious"]) & set(kinds["spurious"]))
    if knowledge and attributes:
        for name in ("visual", "only_nonvisual"):
            verdicts[f"informative_{name}"] = verdicts["informative"] and verdicts[name]
    return verdicts


def read_files(paths: list[str]) -> list[dict]:
    """inspect.py's answers: for each file its header and `judged`, the descriptions that were asked about.

    Each of `judged` has concept, description, names (attributes and spurious kinds), unknown (how many names the
    inspector made up) and the verdicts of MEASURES. Raises UserError for other files, and where two files hold answers
    of one inspector on one VLM and data set.
    """
    files = {}
    for path in map(Path, paths):
        header, answers = read_answers(path)
        key = tuple(header[name] for name in ("inspector", "vlm_name", "dataset"))
        if key in files:
            raise UserError(f"{path} and another file both hold answers of {key[0]} on {key[1]}, {key[2]}; leave one "
                            "out, or tell them apart with --vlm_name when asking")
        judged = []
        for index in sorted({index for index, _ in answers}):
            both = [answers.get((index, question)) for question in QUESTIONS]
            parsed = [answer["parsed"] if answer else None for answer in both]
            about, used = both[0] or both[1], parsed[1] or {"attributes": [], "spurious": [], "unknown": []}
            judged.append({"concept": about["concept"], "description": about["description"],
                           "names": used["attributes"] + used["spurious"], "unknown": len(used["unknown"]),
                           **judge(*parsed, header)})
        files[key] = {"header": header, "judged": judged}
    return list(files.values())


def share(count: int, total: int) -> dict:
    """A share of a total (at least 1) and its 95% Wilson interval."""
    from scipy.stats import binomtest

    interval = binomtest(count, total).proportion_ci(method="wilson")
    return {"count": count, "share": count / total, "low": float(interval.low), "high": float(interval.high)}


def summarize(files: list[dict]) -> list[dict]:
    """A row for each inspector, VLM and data set; labelled descriptions are no VLM's and left out.

    A row has inspector, vlm_name, dataset, descriptions, answered, unknown (names that the inspector made up), measures
    and attributes (name to count, share, low, high; attributes with their kind, the commonest first) and examples
    (three of each of WITH_EXAMPLES). Without an answered description, measures and attributes are empty.
    """
    rows = []
    for file in files:
        header = file["header"]
        if header["dataset"] == LABELED_DATASET:
            continue
        answered = [found for found in file["judged"] if None not in (found["informative"], found["visual"])]
        used = Counter(name for found in answered for name in found["names"])
        kind_of = {name: kind for kind in KINDS for name in header[kind]}
        row = {name: header[name] for name in ("inspector", "vlm_name", "dataset", "descriptions")}
        row |= {"answered": len(answered), "unknown": sum(found["unknown"] for found in answered), "measures": {},
                "attributes": {}, "examples": {}}
        if answered:
            row["measures"] = {name: share(sum(found[name] for found in answered), len(answered)) for name in MEASURES}
            ranked = sorted(kind_of, key=lambda name: -used[name])
            row["attributes"] = {name: {"kind": kind_of[name], **share(used[name], len(answered))} for name in ranked}
            for name in WITH_EXAMPLES:
                fitting = [{key: found[key] for key in ("concept", "description")} for found in answered if found[name]]
                row["examples"][name] = fitting[::max(1, len(fitting) // 3)][:3]  # far apart: of different concepts
        rows.append(row)
    return sorted(rows, key=lambda row: (row["inspector"], row["dataset"], row["vlm_name"]))


def read_labels(which: str = "labels") -> dict[tuple[str, str], dict]:
    """Labels made by hand, by (concept, description), in the form of parsed answers; empty where there are none.
    `which` is "labels", or "second_pass", which only some descriptions have."""
    labels = {}
    for number, line in enumerate(LABELS.read_bytes().splitlines() if LABELS.is_file() else [], 1):
        try:
            entry = json.loads(line)
            if which != "labels" and which not in entry:
                continue
            given = entry[which]
            lists = [given[key] for key in ("attributes", "spurious")]
            if given["increases_knowledge"] not in ("yes", "no") or not all(isinstance(names, list) for names in lists):
                raise ValueError
            labels[entry["concept"], entry["description"]] = {key: given[key] for key in
                                                              ("increases_knowledge", "attributes", "spurious")}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{LABELS}, line {number}: expected is a JSON object with concept, description and labels "
                            "(increases_knowledge, attributes, spurious)") from error
    return labels


def agreement(files: list[dict]) -> dict[str, dict]:
    """How far each inspector agrees with the labels: inspector to verdict (of LABELED) to used, kappa and a `share`.

    `used` is the number of labelled descriptions with an answer, `share` the accuracy with its interval, kappa Cohen's
    (None where it is not defined: no labels, or one and the same verdict everywhere), kappa_interval its 95% interval.
    """
    labels = read_labels()
    found = {}
    for inspector in dict.fromkeys(file["header"]["inspector"] for file in files):
        pairs = {}  # (concept, description) to (verdicts, labels): a description counts once
        for file in files:
            if file["header"]["inspector"] != inspector:
                continue
            for verdicts in file["judged"]:
                key = verdicts["concept"], verdicts["description"]
                if key in labels:
                    pairs[key] = verdicts, judge(labels[key], labels[key], file["header"])
        found[inspector] = {name: compare([(verdicts[name], label[name]) for verdicts, label in pairs.values()
                                           if verdicts[name] is not None]) for name in LABELED}
    return found


def compare(both: list[tuple[bool, bool]]) -> dict:
    """How far two judges agree, by pairs of their verdicts: used, kappa, kappa_interval and a `share`, as of
    `agreement`."""
    import warnings

    from sklearn.metrics import cohen_kappa_score

    if not both:
        return {"used": 0, "kappa": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a kappa without a meaning is not a number, and told as such
        kappa = float(cohen_kappa_score(*zip(*both), labels=[False, True]))
    return {"used": len(both), "kappa": None if kappa != kappa else kappa,
            "kappa_interval": kappa_interval(*zip(*both)),
            **share(sum(mine == label for mine, label in both), len(both))}


def kappa_text(figures: dict) -> str:
    """The kappa of `compare` and its interval, as text."""
    if figures["kappa"] is None:
        return "undefined"
    interval = figures["kappa_interval"]
    return f"{figures['kappa']:.2f}" + (" [{:.2f}, {:.2f}]".format(*interval) if interval else "")


def doubtful(trust: dict[str, dict]) -> set[tuple[str, str]]:
    """(inspector, measure) of all measures with a part in which the inspector's kappa is near chance or not known, by
    what `agreement` found."""
    def known(figures: dict) -> bool:
        return figures["kappa"] is not None and figures["kappa"] >= NEAR_CHANCE

    return {(inspector, name) for inspector, found in trust.items() for name, parts in PARTS.items()
            if not all(known(found[part]) for part in parts)}


def kappa_interval(one: tuple[bool, ...], other: tuple[bool, ...], draws: int = 2000) -> tuple[float, float] | None:
    """The 95% interval of Cohen's kappa between two judges, by a percentile bootstrap over what they judged; None where
    it is not defined."""
    import numpy as np

    one, other = np.array(one, bool), np.array(other, bool)
    drawn = np.random.default_rng(0).integers(len(one), size=(draws, len(one)))
    first, second = one[drawn], other[drawn]
    agreed, a, b = (first == second).mean(1), first.mean(1), second.mean(1)
    chance = a * b + (1 - a) * (1 - b)
    defined = chance < 1
    if not defined.any():
        return None
    kappas = (agreed[defined] - chance[defined]) / (1 - chance[defined])
    return tuple(float(value) for value in np.percentile(kappas, [2.5, 97.5]))


def report(rows: list[dict], trust: dict[str, dict]) -> str:
    """Tables, attributes, examples and agreement, as text."""
    lines = []
    for inspector in trust:
        of_inspector = [row for row in rows if row["inspector"] == inspector]
        if of_inspector:
            who = "words (word lists, no model)" if inspector == "words" else inspector
            lines += [f"Verdicts of {who}: percent of the answered descriptions [95% Wilson interval]", ""]
            lines += _table([["VLM", "data set", "descriptions", "answered", *(MEASURES[name] for name in IN_TABLE)],
                             *([row["vlm_name"], row["dataset"], str(row["descriptions"]), str(row["answered"]),
                                *(_percent(row["measures"].get(name)) for name in IN_TABLE)] for row in of_inspector)])
        for row in of_inspector:
            lines += ["", f"{row['vlm_name']}, {row['dataset']}"]
            for kind in KINDS:
                ranked = [f"{name} {100 * found['share']:.1f}" for name, found in row["attributes"].items()
                          if found["kind"] == kind and found["count"]]
                lines.append(f"  {MEASURES[kind]}: {', '.join(ranked) or 'none'}")
            if row["unknown"]:
                lines.append(f"  {row['unknown']} names that are in no list were left out")
            for name, examples in row["examples"].items():
                lines.append(f"  {MEASURES[name]}: {_percent(row['measures'][name])}")
                lines += [f"    {found['concept']}: {' '.join(found['description'].split())}" for found in examples]
        lines += ["", *_trust(inspector, trust[inspector]), ""]
    return "\n".join(lines)


def _trust(inspector: str, found: dict[str, dict]) -> list[str]:
    used = max(figures["used"] for figures in found.values())
    if not used:
        why = "holds none of these descriptions" if LABELS.is_file() else "does not exist"
        return [f"How far to trust {inspector} is not known: {LABELS}, the descriptions labelled by hand, {why}."]
    table = [["verdict", "descriptions", "accuracy", "kappa"]]
    for name, figures in found.items():
        table.append([MEASURES[name], str(figures["used"]), _percent(figures if figures["used"] else None),
                      kappa_text(figures)])
    lines = [f"How far to trust {inspector}, by {used} descriptions labelled by hand ({LABELS}; kappa is 1 where all "
             "agree, 0 for chance):", "", *_table(table)]
    weak = [MEASURES[name] for name, figures in found.items()
            if figures["kappa"] is None or figures["kappa"] < NEAR_CHANCE]
    if weak:
        lines.append(f"warning: hardly better than chance on {', '.join(weak)}; take a more capable inspector")
    return lines


def _percent(found: dict | None) -> str:
    return f"{100 * found['share']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]" if found else "-"


def _table(cells: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]


def as_csv(rows: list[dict]) -> str:
    """The rows as CSV, one line for each measure and each attribute; shares between 0 and 1."""
    text = io.StringIO()
    about = ("inspector", "vlm_name", "dataset", "descriptions", "answered")
    writer = csv.DictWriter(text, [*about, "kind", "name", "count", "share", "low", "high"], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        figures = [{"name": name, "kind": "verdict", **found} for name, found in row["measures"].items()]
        figures += [{"name": name, **found} for name, found in row["attributes"].items()]
        for found in figures or [{}]:
            writer.writerow({name: row[name] for name in about} | found)
    return text.getvalue()
