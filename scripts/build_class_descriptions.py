"""Make a text pool about the classes of a data set, with a language model: short descriptions of how each class looks.

    python -m scripts.build_class_descriptions --dataset imagenet --model_name mistralai/Mistral-7B-Instruct-v0.3
    python -m scripts.build_class_descriptions --dataset emoji --num_classes 5       # SmolLM2-135M, minutes on a CPU

Asks every question of --questions about every class (those of configs/class_questions.txt about ImageNet's classes are
some 30,000), as inference.py does, and keeps from each answer its first sentence, where that can be a line of a pool:
at most 20 words, no refusal, no echo of the question, not said before. A run that was cut off goes on where it stopped.

Writes --output_filepath X.txt, the pool, one line a description, for compute_text_set_projection.py; and beside it
X.manifest.json, which says what made it, how many answers were kept, and why the others were not, with the answers as
they came in X.jsonl and X.json, the files of inference.py.
"""
import re

from inference import add_generation_options
from utils import cli
from utils.cli import UserError
from utils.data.datasets import NAMES
from utils.ex2.descriptions import phrases, words

MOST_WORDS = 20
RUN = 4  # words in a row that a line may not share with its question, the class's name left out
DROPPED = ("empty", "refusal", "echo", "too_long", "repeated")
MARKER = re.compile(r"^(?:[-•·–—#>]+\s*|\(?\d{1,2}[.):]\s+|\(?[a-zA-Z]\)\s+)+")
INTRODUCTION = re.compile(
    r"^(?:(?:sure|certainly|of course|okay|yes)[,.!]+\s*)?"
    r"(?:(?:here(?:'s| is| are)|(?:the |a )?(?:short )?(?:answer|phrase|description|caption))\b[^:]{0,80}:\s*)?",
    re.IGNORECASE)
SENTENCE_END = re.compile(r"(?:(?<=[.!?])(?<!\b\w\.)(?<!\b\w\w\.)|(?<=[.!?][')]))\s+")  # not after St. or e.g.
REFUSAL = re.compile(
    r"\bas an? (?:\w+ )?(?:ai|(?:language )?model|assistant)\b|\blanguage model\b|\bsorry\b|\bapologi[sz]e\b"
    r"|\bi(?: am|'m) (?:unable|not able|an ai)\b|\bi (?:can't|can ?not|could ?n[o']t|do(?: not|n't) (?:have|know))\b"
    r"|^\W*(?:i|i'\w+|please|let me|let's)\s", re.IGNORECASE)


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_data_options(parser, NAMES)
    parser.add_argument("--num_classes", type=cli.POSITIVE, metavar="N", help="only the first N classes (default: all)")
    add_generation_options(parser)
    parser.set_defaults(model_name="smollm2-135m", questions="configs/class_questions.txt", max_new_tokens=40)
    cli.add_device(parser, "of hf: ")
    parser.add_argument("--output_filepath", metavar="X.txt",
                        help="where the pool goes (default: ./output_dir/{dataset}_class_descriptions.txt)")
    return parser


def first_sentence(text: str) -> str:
    """The first sentence of an answer in one line, without list markers, introductions and quotation marks."""
    for line in re.sub('[*`"“”]', "", re.sub("[‘’]", "'", text)).splitlines():
        line = MARKER.sub("", " ".join(line.split()))
        line = MARKER.sub("", INTRODUCTION.sub("", line))
        if line and not line.endswith(":"):  # else it announces what comes in the next lines
            return SENTENCE_END.split(line)[0].strip("' ")
    return ""


def clean(text: str, question: str, concept: str) -> tuple[str, str | None]:
    """An answer as a line of a pool, and why it cannot be one: one of DROPPED, or None. `question` names `concept`."""
    sentence = first_sentence(text)
    line = sentence.rstrip(".!;:,… ")
    said, asked = words(line), {*words(question), "a", "an", "the", "it", "is", "its"}
    if not said or "\ufffd" in line:  # the sign for bytes that are no text
        return line, "empty"
    if REFUSAL.search(text.replace("’", "'")):
        return line, "refusal"
    if sentence.endswith("?") or {"ten", "words"} <= set(said) or set(said) <= asked \
            or any(set(phrases(line, RUN)) & set(phrases(part, RUN)) for part in question.split(concept)):
        return line, "echo"
    return line, "too_long" if len(line.split()) > MOST_WORDS else None


def pool(rows: list[dict]) -> tuple[list[str], dict[str, int]]:
    """Lines of a text pool from inference.py's rows, and how many rows were dropped for each of DROPPED."""
    lines: dict[str, str] = {}  # by their lower case
    dropped = dict.fromkeys(DROPPED, 0)
    for row in rows:
        line, reason = clean(row["description"], row["question"], row["concept"])
        if reason or line.casefold() in lines:
            dropped[reason or "repeated"] += 1
        else:
            lines[line.casefold()] = line
    return list(lines.values()), dropped


def main(args) -> None:
    from pathlib import Path

    from inference import generate
    from utils.data import datasets
    from utils.ex2 import descriptions

    output = Path(args.output_filepath or f"./output_dir/{args.dataset}_class_descriptions.txt")
    if output.suffix != ".txt":
        raise UserError(f"--output_filepath {output}: a text pool is a .txt file; let the name end with .txt")
    try:
        classes = list(dict.fromkeys(datasets.class_names(args.dataset, args.data_path)))  # ImageNet has two twice
    except ImportError as error:
        raise UserError(f"the class names of {args.dataset} need {error.name}, which is not in this environment; run "
                        "from .venv, with --backend server where vLLM is in another one") from error
    cli.check_range("--num_classes", args.num_classes or len(classes), len(classes))
    rows, manifest = generate(args, args.dataset, classes[:args.num_classes], str(output))
    lines, dropped = pool(rows)
    if not lines:
        raise UserError(f"none of {len(rows)} answers can be a line of a pool ({dropped}); take another --model_name")
    cli.write_text(output, "\n".join(lines) + "\n")
    counts = {"generated": len(rows), "kept": len(lines), "dropped": dropped, "most_words": MOST_WORDS}
    descriptions.write(str(output), rows, manifest | counts)
    reasons = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in dropped.items())
    print(f"{len(rows)} answers; dropped: {reasons}")
    print(f"{cli.counted(len(lines), 'text')} -> {output}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
