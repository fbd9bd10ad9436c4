"""What all views are made of: templates, pictures in the page itself, and what is saved. Templates escape what they are
given."""
import base64
import csv
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO, StringIO
from pathlib import Path

import jinja2
from PIL import Image

from utils.analysis.names.naming import spelled

HERE = Path(__file__).resolve().parent
MINUS = "\N{MINUS SIGN}"


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign; one that rounds to 0 has none."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", MINUS)


ENVIRONMENT = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), undefined=jinja2.StrictUndefined,
                                 autoescape=True, trim_blocks=True, lstrip_blocks=True)
ENVIRONMENT.filters |= {"signed": signed, "spelled": spelled}


def render(view: str, **content) -> str:
    """The HTML of a macro of views.html.j2."""
    return str(getattr(ENVIRONMENT.get_template("views.html.j2").module, view)(**content))


def uri(content: bytes, kind: str) -> str:
    """A file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def image(picture: Image.Image, longest: int = 384) -> str:
    """A picture as an address that holds it, at most that large."""
    picture, buffer = picture.convert("RGB"), BytesIO()
    picture.thumbnail((longest, longest))
    picture.save(buffer, "webp", quality=85)
    return uri(buffer.getvalue(), "image/webp")


def png(draw: Callable[[BytesIO], None]) -> str:
    """What a function of utils/plots draws, as an address that holds it."""
    buffer = BytesIO()
    draw(buffer)
    return uri(buffer.getvalue(), "image/png")


def table(rows: Iterable[Sequence]) -> str:
    """Rows as a CSV file, as an address that holds it."""
    buffer = StringIO(newline="")
    csv.writer(buffer).writerows(rows)
    return uri(buffer.getvalue().encode(), "text/csv")
