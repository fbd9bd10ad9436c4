"""Queries: question templates filled with a concept's name (EX2, section 3)."""
from pathlib import Path

from utils.cli import UserError


def read_questions(path: str) -> list[str]:
    """Question templates, one a line, each with `{concept}`. Raises UserError for a line without it."""
    if not Path(path).is_file():
        raise UserError(f"--questions {path} does not exist; it holds one template a line, as configs/questions.txt does")
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"--questions {path} is not UTF-8 text; save it as such") from error
    for line in lines:
        if "{concept}" not in line:
            raise UserError(f"{path}: {line!r} lacks {{concept}}, where the concept's name goes")
    if not lines:
        raise UserError(f"{path} holds no questions")
    return lines


def fill(question: str, concept: str) -> str:
    """A template with a concept's name in it."""
    return question.replace("{concept}", concept)
