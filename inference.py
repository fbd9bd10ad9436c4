"""Generate descriptions of concepts with an aligned language model, and score them with a VLM (EX2, section 3).

    python inference.py --model_name output_dir/emoji_adapter --output_filepath output_dir/descriptions.json \\
        --num_concepts 32 --score r-open-clip:emojiclip
    python inference.py --model_name smollm2-135m --output_filepath output_dir/untrained.json --num_concepts 32
    python inference.py --score openai/clip-vit-large-patch14 --eval_dataset cub --data_root DIR \\
        --descriptions output_dir/descriptions.json                                  # scores, generates nothing

One description a concept and question. Writes --output_filepath X.json, a list (concepts) of lists (descriptions), and
beside it X.jsonl, one line a description: concept, question, description, seed, reward (null where not scored), and
X.manifest.json, which says what made them. A run that was cut off goes on where it stopped, and what is finished is not
made again.
"""
from utils import cli, processes
from utils.cli import UserError
from utils.data.datasets import WITH_CONCEPTS


def get_args_parser():
    parser = cli.make_parser(__doc__)
    add_generation_options(parser)
    cli.add_concept_options(parser, WITH_CONCEPTS, "--eval_dataset")
    parser.add_argument("--output_filepath", metavar="X.json",
                        help="where descriptions go (default: --descriptions, if given)")
    parser.add_argument("--descriptions", metavar="X.json",
                        help="score this file of an earlier run (default: generate)")
    cli.add_vlm_options(parser, "--score", None)
    cli.add_device(parser, "of hf and of the VLM: ")
    return parser


def add_generation_options(parser) -> None:
    """The options of `generate`."""
    parser.add_argument("--model_name", metavar="NAME",
                        help="folder of an adapter that train.py wrote, or a language model as it is")
    parser.add_argument("--base_model_name", metavar="NAME",
                        help="language model under the adapter (default: the one it was trained on)")
    parser.add_argument("--backend", default="auto", choices=("auto", "vllm", "hf", "server"),
                        help="vllm in this process, hf (transformers), or an OpenAI-compatible server (default: vllm "
                             "where it runs, else hf)")
    parser.add_argument("--base_url", metavar="URL",
                        help="URL of the server, such as http://localhost:8000/v1 (default: none)")
    parser.add_argument("--served_model_name", metavar="NAME", help="model of the server (default: its first)")
    parser.add_argument("--questions", default="configs/questions.txt", metavar="FILE.txt",
                        help="question templates with {concept}, {a concept} or {concepts}, one a line; or the "
                             "published JSON list")
    parser.add_argument("--tensor_parallel_size", type=cli.SIZE, default=1, metavar="N",
                        help="of vllm: GPUs that share the language model")
    parser.add_argument("--max_model_len", type=cli.Number(int, 1, 1_000_000), metavar="N",
                        help="of vllm: tokens of a prompt and its description that memory is kept for (default: the "
                             "language model's own, 512 on a CPU)")
    parser.add_argument("--max_new_tokens", type=cli.SIZE, default=32, help="tokens a description")
    parser.add_argument("--batch_size", type=cli.SIZE, default=32, help="descriptions at a time")
    parser.add_argument("--seed", type=cli.SEED, default=0,
                        help="seed of the first description; each further one has the next")


def main(args) -> None:
    import importlib.util
    import sys

    from utils.data import concepts
    from utils.ex2 import descriptions
    from utils.models import names as models

    if args.descriptions and not args.score:
        raise UserError("--descriptions FILE is for scoring; add --score VLM_NAME")
    if not args.descriptions and not args.model_name:
        raise UserError("name an adapter or a language model with --model_name, or a file to score with --descriptions")
    output = args.output_filepath or args.descriptions
    if not output:
        raise UserError("--output_filepath X.json is missing: where should the descriptions go?")
    if not output.endswith((".json", ".jsonl")):  # what follows a dot in a name would be taken for its ending
        option = "--output_filepath" if args.output_filepath else "--descriptions"
        raise UserError(f"{option} {output}: the name should end in .json, such as {output}.json")
    if args.score:  # what is missing is found before the long work
        if importlib.util.find_spec("open_clip") is None:
            raise UserError("there is no open_clip in this environment to score with; leave --score out here, and then "
                            f"run: .venv/bin/python inference.py --score {args.score} --descriptions {output}")
        models.split_vlm_name(args.score)
        if processes.is_main_process():  # at once: what follows takes a while
            print(f"{args.score} is to score {output} by images of {args.eval_dataset}; looking for them ...",
                  file=sys.stderr, flush=True)
        images = concepts.load_concepts(args.eval_dataset, args.data_root, args.split, args.num_concepts,
                                        args.num_images_for_reward, class_names=args.class_names)

    # Descriptions.
    if args.descriptions:
        rows, manifest = descriptions.read(args.descriptions, images.classes)
    else:
        names = concepts.concept_names(args.eval_dataset, args.data_root, args.split, args.num_concepts,
                                       args.class_names)
        rows, manifest = generate(args, args.eval_dataset, names, output)
        if not processes.is_main_process():
            return

    # Rewards.
    by = {"vlm_name": args.score, "vlm_16bit": args.vlm_16bit, "data_root": args.data_root, "reward_split": args.split,
          "num_images_for_reward": args.num_images_for_reward} if args.score else {}
    if not args.descriptions and "measures" in manifest and by.items() <= manifest.items():
        print(f"finished already -> {output}")
        return
    if args.score:
        if (of := manifest.get("dataset", args.eval_dataset)) != args.eval_dataset:
            cli.note(f"{output} describes concepts of {of}, and is scored by images of {args.eval_dataset}")
        score(args, images, rows, output)
        manifest |= by | {"dataset": args.eval_dataset}

    descriptions.write(output, rows, manifest)
    for line in descriptions.summary(rows):
        print(line)
    print(f"{cli.counted(len(rows), 'description')} -> {output}")


def generate(args, dataset: str, names: list[str], output: str) -> tuple[list[dict], dict]:
    """Descriptions of the concepts with these names as rows of the JSONL, and what made them. What an earlier run had
    made is not made again; of one that is finished, the rows have its rewards, and the manifest has its sums."""
    import sys
    from contextlib import nullcontext

    from tqdm import tqdm

    if processes.is_main_process():  # at once: what follows takes a while to import
        print(f"{args.model_name} describes {len(names)} concepts of {dataset} -> {output}; loading ...",
              file=sys.stderr, flush=True)
    from utils.ex2 import descriptions
    from utils.language import loading

    base, adapter = loading.resolve(args.model_name, args.base_model_name)
    loading.check_name(base)
    from utils.language import generation

    engine = {"tensor_parallel_size": args.tensor_parallel_size} if args.tensor_parallel_size > 1 else {}
    if args.max_model_len:
        engine["max_model_len"] = args.max_model_len
    backend = generation.pick_backend(args.backend, args.base_url, engine, args.served_model_name)
    questions = descriptions.read_questions(args.questions)
    tokenizer = loading.load_tokenizer(base)
    queries = [(name, descriptions.fill(question, name)) for name in names for question in questions]
    rows = [{"concept": name, "question": query, "description": None, "seed": args.seed + i, "reward": None}
            for i, (name, query) in enumerate(queries)]
    manifest = {"model_name": args.model_name, "base_model_name": base, "backend": backend, "dataset": dataset,
                "concepts": names, "questions": questions, "seed": args.seed, "max_new_tokens": args.max_new_tokens,
                "weights_sha256": loading.adapter_hash(adapter)}
    if backend == "server":  # whose texts these are, whatever --model_name says
        manifest["served_model"] = args.served_model_name or generation.served_model(args.base_url)
    written = loading.last_written(base)
    if made := descriptions.finished(output, manifest, written):
        return made

    state = processes.start_processes(args.device) if backend == "hf" else None
    with descriptions.kept(output, manifest, written) if processes.is_main_process() else nullcontext() as record:
        done = record.lines if record else None
        if state:
            done = processes.gather({0: done} if record else {})[0]
        todo = rows[len(done):]
        chunks = generation.generate(
            backend, base, adapter, [loading.prompt_ids(tokenizer, row["question"]) for row in todo],
            [row["seed"] for row in todo], args.max_new_tokens, args.batch_size, state, args.base_url,
            manifest.get("served_model"), engine)
        try:
            with tqdm(total=len(rows), initial=len(done), desc=f"descriptions ({backend})", unit="description") as bar:
                for chunk in chunks:
                    if record:
                        record.append(*chunk)
                    done += chunk
                    bar.update(len(chunk))
        except KeyboardInterrupt:
            if record:
                print(f"{len(done)} of {len(rows)} descriptions are kept: the same command again goes on",
                      file=sys.stderr)
            raise
    for row, text in zip(rows, done):
        row["description"] = text
    return rows, manifest


def score(args, images, rows: list[dict], output: str) -> None:
    """Fill in the rewards of rows, by the images of their concepts, whose mean embeddings are kept beside `output`."""
    from pathlib import Path

    from utils.ex2 import rewards
    from utils.models.loading import load_vlm

    unknown = sorted({row["concept"] for row in rows} - set(images.classes))
    if unknown:
        raise UserError(f"{args.eval_dataset} has no concept {unknown[0]!r}; name the data set of the descriptions "
                        "with --eval_dataset, and leave --num_concepts out")
    vlm = load_vlm(args.score, processes.pick_device(args.device), args.vlm_16bit)
    means = rewards.kept_image_means(str(Path(output).parent), args.eval_dataset, vlm, images,
                                     {"split": args.split, "vlm_16bit": args.vlm_16bit})
    texts, labels = [row["description"] for row in rows], [images.classes.index(row["concept"]) for row in rows]
    if cut := len(vlm.cut(texts)):
        cli.note(f"{cut} of {cli.counted(len(texts), 'description')} have more tokens than {args.score} reads; what "
                 "comes after these does not count")
    for row, reward in zip(rows, rewards.score(vlm, means, texts, labels)):
        row["reward"] = reward


if __name__ == "__main__":
    cli.run(main, get_args_parser())
