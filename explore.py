"""A page on which one asks: drop in a picture, type a sentence, click a head, switch heads off, and see.

    python explore.py --model emojiclip --dataset emoji --text_descriptions emoji_descriptions
    python explore.py --model ViT-L-14 --pretrained laion2b_s32b_b82k --dataset imagenet --data_path DIR
    python explore.py --model emojiclip --dataset emoji --compare_model ViT-B-16 --compare_pretrained openai

Serves http://127.0.0.1:7860 (--port) to this machine alone, until it is interrupted (Ctrl-C). Reads what the other
scripts wrote to --input_dir: the arrays of compute_prs.py are needed; zero-shot classifier, texts of heads and names of
heads are shown where they are, and else the page says which command makes them, and runs it on request where the run is
small. Writes nothing: what is saved goes through the browser, and a picture that is dropped in stays in memory.

The views: A picture, its heat maps for texts and the heads behind them; Heads, all of them, and the accuracy with
several switched off; Search, for images like the picture or for a text, by chosen heads; and Compare, the same picture
and texts in a second run.
"""
from utils import cli, processes
from utils.data.datasets import NAMES


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_run_options(parser, NAMES)
    parser.add_argument("--data_path", metavar="FOLDER", help="as given to compute_prs.py (default: none)")
    parser.add_argument("--text_dir", default="./text_descriptions", metavar="FOLDER", help="where the text pool is")
    cli.add_texts_of_heads_options(parser)
    cli.add_reload_options(parser, "of the model: ", "of random weights, as given there")
    parser.add_argument("--compare_model", metavar="NAME", help="model of a second run (default: --model)")
    parser.add_argument("--compare_input_dir", metavar="FOLDER",
                        help="where the arrays of a second run are (default: --input_dir)")
    parser.add_argument("--compare_pretrained", metavar="TAG", help="weights of --compare_model (default: none)")
    parser.add_argument("--port", type=cli.Number(int, 1, 65535), default=7860, help="port of the page's address")
    return parser


def main(args) -> None:
    import logging
    import socket
    import threading

    from utils.cli import UserError
    from utils.runs.files import Place

    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind(("127.0.0.1", args.port))
        except OSError as error:
            raise UserError(f"--port {args.port}: is in use; choose another") from error

    import uvicorn

    from utils.explore import page
    from utils.explore.session import Session, open_session

    # The run, and where there is one a second to compare it with.
    device = processes.pick_device(args.device)

    def opened(folder: str, model: str, pretrained: str | None) -> Session:
        return open_session(Place(folder, args.dataset, model, args.split), args.data_path, args.text_descriptions,
                            args.texts_per_head, args.text_dir, pretrained, device, args.seed)

    def first() -> Session:
        return opened(args.input_dir, args.model, args.pretrained)

    sessions = [first()]
    if args.compare_model or args.compare_input_dir:
        sessions.append(opened(args.compare_input_dir or args.input_dir, args.compare_model or args.model,
                               args.compare_pretrained))

    # The page, until Ctrl-C or SIGTERM.
    application = page.application(page.build(sessions, first), sessions, args.port)
    server = uvicorn.Server(uvicorn.Config(application, host="127.0.0.1", port=args.port, log_level="warning"))
    ended = threading.Event()

    def serve() -> None:
        try:
            server.run()
        finally:
            ended.set()

    threading.Thread(target=serve, daemon=True).start()
    try:
        while not (server.started or ended.wait(0.1)):
            pass
        print(f"http://127.0.0.1:{args.port}", flush=True)
        ended.wait()
    except KeyboardInterrupt:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # which would say that pages were cut off
        server.should_exit = server.force_exit = True
        ended.wait(5)


if __name__ == "__main__":
    cli.run(main, get_args_parser())
