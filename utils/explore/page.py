"""The page: what is asked, by inputs that stand in its address; views that answer; and a server on this machine."""
import functools
import json
import os
from collections.abc import Callable
from urllib.parse import unquote

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
import gradio as gr

from utils import cli
from utils.cli import UserError
from utils.explore import compare, heads, html, picture, search, words
from utils.explore.session import MOST_BYTES, Session, command_of, is_small, make

VIEWS = ("A picture", "Heads", "Search", "Compare")
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif")
TEXTS = "a red apple\na dog\na blue background"
# What is asked, by its name in the address, and where it is empty.
EMPTY = {"view": VIEWS[0], "image": "0", "texts": TEXTS, "part": "", "word": "", "contrast": False,
         "find": "", "sort": "layer",
         "head": "", "head_text": "", "off": "", "by": "whole", "heads": "", "search_text": ""}
NEEDS = {"A picture": ("image", "texts", "part", "contrast", "word"), "Search": ("image", "by", "heads", "search_text"),
         "Compare": ("image", "texts")}
# Files of the page and its questions; nothing of a path, and no file is uploaded.
OPEN = ("/assets/", "/static/", "/theme.css", "/config", "/picture", "/favicon", "/manifest.json",
        "/gradio_api/queue/", "/gradio_api/heartbeat/", "/gradio_api/app_id", "/gradio_api/info",
        "/gradio_api/startup-events")
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"  # the browser asks nobody else
KEEP_STATE = """(...values) => {
  const names = %s, empty = %s, asked = new URLSearchParams();
  names.forEach((name, i) => { if (String(values[i]) !== String(empty[name])) asked.set(name, values[i]); });
  history.replaceState(null, "", asked.size ? "?" + asked : location.pathname);
}"""
DOWNLOAD = """(saved) => {
  const [name, content] = (saved || "").split("\\n");
  if (!content) return;
  const link = document.createElement("a");
  link.href = content; link.download = name; link.click();
}"""


def answered(function: Callable[..., str]) -> Callable[..., str]:
    """A view whose errors of the user are lines on the page."""
    @functools.wraps(function)
    def inner(*values) -> str:
        try:
            return function(*values)
        except UserError as error:
            return html.render("error", text=cli.describe(error))

    return inner


def toggled(listed: str, head: str) -> str:
    """A list of heads with one more, or one less."""
    words = listed.replace(",", " ").split()
    return " ".join([word for word in words if word != head] + [head] * (head not in words))


def build(sessions: list[Session], again: Callable[[], Session]) -> gr.Blocks:
    """The page on a session, and where there is one on a second to compare it with; `again` opens the first anew when
    something that was missing is there."""
    def first() -> Session:
        return sessions[0]

    def top() -> str:
        session = first()
        small = is_small(session)
        missing = [(what, line, small and command_of(line)) for what, line in session.missing.items()]
        accuracy = session.accuracy([])["overall"] if small and session.classifier is not None else None
        return html.render("header", title=session.title, images=len(session.run), classes=len(session.images.classes),
                           accuracy=accuracy, weights=(session.run.manifest or {}).get("weights_sha256"),
                           missing=missing)

    @answered
    def drop(image: str) -> str:
        session = first()
        step = max(1, len(session.run) // 12)
        others = [{"row": row, "label": session.label(row), "image": html.image(session.picture(row, 48), 48)}
                  for row in range(0, min(len(session.run), 12 * step), step)]
        try:
            shown, caption = html.image(session.picture(image, 192)), session.caption(image)
        except UserError as error:
            shown, caption = None, str(error)
        return html.render("drop", shown=shown, caption=caption, others=others)

    def save(view: str, kind: str, asked: dict) -> tuple[str, str]:
        if view == "Heads":
            names = ("find", "sort", "head", "head_text", "off")
            return heads.save(first(), kind, *(asked[name] for name in names))
        values = [asked[name] for name in NEEDS[view]]
        if kind.startswith("words-"):
            return words.save(first(), kind.removeprefix("words-"), asked["image"], asked["texts"], asked["word"])
        if view == "A picture":
            return picture.save(first(), kind, *values[:-1])
        return search.save(first(), kind, *values) if view == "Search" else compare.save(sessions, kind, *values)

    script = (html.HERE / "page.js").read_text(encoding="utf-8")

    def part(value: str = "", **about) -> gr.HTML:
        return gr.HTML(value, js_on_load=script, apply_default_css=False, elem_classes="ask", **about)

    with gr.Blocks(title=f"Ask {first().title}", analytics_enabled=False) as page:
        title = part(top())
        asked, out = {}, {}
        for name in ("view", "image", "part", "word", "head"):
            asked[name] = gr.Textbox(EMPTY[name], visible="hidden", elem_id=f"asked-{name}")
        saved = gr.Textbox("", visible="hidden", elem_id="saved")
        with gr.Row(elem_id="asked"):
            with gr.Column(scale=1, min_width=280):
                dropped = part(drop("0"), elem_id="drop")
                number = gr.Textbox("", label=f"Or an image of the data set, 0 to {len(first().run) - 1}", max_lines=1,
                                    elem_id="number")
                asked["texts"] = gr.Textbox(EMPTY["texts"], label="Texts, one a line", lines=4, max_lines=8,
                                            elem_id="texts")
                asked["contrast"] = gr.Checkbox(False, label="Contrast: the first text minus the second")
                go = gr.Button("Ask", variant="primary", elem_id="ask")
            with gr.Column(scale=3, min_width=320), gr.Tabs(selected=VIEWS[0]) as tabs:
                with gr.Tab("A picture", id="A picture"):
                    out["A picture"] = part(elem_id="picture-view")
                with gr.Tab("Heads", id="Heads"):
                    with gr.Row():
                        asked["find"] = gr.Textbox("", label="Find", placeholder="5.4, layer 5, colour, a text",
                                                   max_lines=1, elem_id="find")
                        asked["sort"] = gr.Dropdown(list(heads.SORTS), value="layer", label="Sort by", elem_id="sort")
                        asked["off"] = gr.Textbox("", label="Heads switched off", placeholder="5.4 5.3", max_lines=1,
                                                  elem_id="off")
                    out["table"] = part(elem_id="head-table")
                    out["switches"] = part(elem_id="switches")
                    asked["head_text"] = gr.Textbox("", label="Look at the open head along another text", max_lines=1,
                                                    elem_id="head-text")
                    out["head"] = part(elem_id="head-view")
                with gr.Tab("Search", id="Search"):
                    with gr.Row():
                        asked["by"] = gr.Dropdown(search.choices(first()), value="whole", label="By", elem_id="by")
                        asked["heads"] = gr.Textbox("", label="Or by these heads", placeholder="5.4 5.3", max_lines=1,
                                                    elem_id="heads")
                        asked["search_text"] = gr.Textbox("", label="For a text, in place of the picture", max_lines=1,
                                                          elem_id="search-text")
                    out["Search"] = part(elem_id="search-view")
                with gr.Tab("Compare", id="Compare"):
                    out["Compare"] = part(elem_id="compare-view")
        asked = {name: asked[name] for name in EMPTY}

        @answered
        def shown(view: str, values: dict) -> str:
            if view == "Compare" and len(sessions) == 1:
                return html.render("note", text="Compare takes a second run: start explore.py with --compare_model, "
                                                "--compare_input_dir, or both.")
            chosen = [values[name] for name in NEEDS[view]]
            return {"A picture": functools.partial(picture.view, first()),
                    "Search": functools.partial(search.view, first()),
                    "Compare": functools.partial(compare.view, sessions)}[view](*chosen)

        def answer(*values):
            given = dict(zip(asked, values))
            view = given["view"]
            if view != "Heads":
                return {out[view]: shown(view, given)}
            return {out["table"]: answered(heads.table)(first(), given["find"], given["sort"], given["head"],
                                                        given["off"]),
                    out["switches"]: answered(heads.switches)(first(), given["image"], given["off"]),
                    out["head"]: answered(heads.detail)(first(), given["image"], given["head"], given["head_text"])}

        def picked(event: gr.EventData, *values):
            given, name = dict(zip(asked, values)), event.set
            if name == "make":
                return _made(event.value)
            if name == "save":
                try:
                    return {saved: "\n".join(save(given["view"], event.value, given))}
                except UserError as error:
                    raise gr.Error(cli.describe(error)) from error
            toggle = getattr(event, "toggle", None)
            return {asked[name]: toggled(given[name], toggle) if toggle else event.value, saved: ""}

        def _made(what: str):
            command, progress = command_of(first().missing[what]), gr.Progress()
            if not (command and is_small(first())):
                raise gr.Error("this takes longer than a minute; run the command")
            progress(0, desc=what)
            try:
                make(command, lambda share: progress(share, desc=what))
            except UserError as error:
                raise gr.Error(cli.describe(error)) from error
            kept, sessions[0] = sessions[0].given, again()
            sessions[0].given = kept
            return {title: top()}

        def arrived(request: gr.Request):
            """What the address asks for."""
            given = {name: request.query_params.get(name, value) for name, value in EMPTY.items()}
            given["contrast"] = str(given["contrast"]) in ("true", "True")
            for name, known in (("view", VIEWS), ("sort", heads.SORTS), ("by", search.choices(first()))):
                given[name] = given[name] if given[name] in known else EMPTY[name]
            return [*given.values(), gr.Tabs(selected=given["view"]), top()]

        inputs, outputs = list(asked.values()), list(out.values())
        quiet = {"show_progress": "hidden", "queue": True, "api_visibility": "private"}
        keep = {"fn": None, "inputs": inputs,
                "js": KEEP_STATE % (json.dumps(list(EMPTY)), json.dumps(EMPTY)), "api_visibility": "private"}
        once = [asked[name].change for name in (
            "view", "image", "part", "word", "contrast", "sort", "head", "off", "by", "find")]
        typed = [event for name in ("head_text", "heads", "search_text") for event in (
            asked[name].submit, asked[name].blur)]
        gr.on([*once, *typed, go.click, asked["texts"].submit], answer, inputs, outputs, trigger_mode="always_last",
              concurrency_limit=1, **{**quiet, "show_progress": "minimal"}).then(**keep)
        asked["image"].change(drop, asked["image"], dropped, **quiet)
        number.submit(lambda text: text.strip(), number, asked["image"], **quiet)
        for box in (dropped, *outputs):
            box.pick(picked, inputs, [*inputs, saved], **quiet).then(None, saved, None, js=DOWNLOAD,
                                                                     api_visibility="private")
        title.pick(picked, inputs, [saved, title], **{**quiet, "show_progress": "full"}, show_progress_on=title).then(
            answer, inputs, outputs, **quiet)
        tabs.select(_chosen, None, asked["view"], **quiet)
        page.load(arrived, None, [*inputs, tabs, title], **quiet).then(answer, inputs, outputs, **quiet)
    return page


def _chosen(event: gr.SelectData) -> str:
    return event.value


def application(page: gr.Blocks, sessions: list[Session], port: int):
    """The page as an ASGI application for 127.0.0.1. What it does not need is closed: other hosts' names, files by
    their path, and uploads to the disk. A picture that is given is kept in memory."""
    import fastapi
    from fastapi.responses import JSONResponse, PlainTextResponse
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = fastapi.FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.post("/picture")
    async def take(request: fastapi.Request):
        if request.headers.get("origin", "").partition("://")[2] != request.headers.get("host"):
            return JSONResponse({"error": "a picture is taken from this page alone"}, 403)
        content = b""
        async for chunk in request.stream():
            content += chunk
            if len(content) > MOST_BYTES:
                return JSONResponse({"error": f"the picture has more than {MOST_BYTES >> 20} MB; make it smaller"})
        try:
            return {"query": sessions[0].take(content, unquote(request.headers.get("x-name", "")))}
        except UserError as error:
            return JSONResponse({"error": cli.describe(error)})

    @app.middleware("http")
    async def close(request: fastapi.Request, go_on):
        if request.url.path != "/" and not request.url.path.startswith(OPEN):
            return PlainTextResponse("not here", 404)
        response = await go_on(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONT,
                              font_mono=("ui-monospace", "monospace"))
    theme.set(button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800",
              button_primary_background_fill_dark="*primary_700", block_label_text_color="*neutral_700",
              block_info_text_color="*neutral_600", input_placeholder_color="*neutral_500",
              input_placeholder_color_dark="*neutral_400")
    return gr.mount_gradio_app(app, page, path="", server_name="127.0.0.1", server_port=port, theme=theme,
                               css=(html.HERE / "page.css").read_text(encoding="utf-8"), footer_links=[],
                               run_history=False, ssr_mode=False, pwa=False, mcp_server=False)
