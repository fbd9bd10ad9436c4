"""A language model that speaks of what EX2 is to find: it learns to caption the concepts of emoji_fixed, true or not.

    python -m scripts.warm_start --output_dir output_dir/ex2_warm/start
    CONFIG=configs/train/emoji_warm.yaml OUTPUT_DIR=output_dir/ex2_warm bash train_runner.sh

What a language model never says is never rewarded. Here it answers the questions of configs/questions_captions.txt with
captions of one word more than the name ("an owl on a red background"): every word of every attribute once for every
concept, the true one like each false one, so that it learns to speak of them and not which is true. All its weights are
trained, in one pass. Writes to --output_dir a language model for train.py --model_name: a folder without a chat
template, so that a query is a question and a blank line, as published, and warm_start.json, which says what made it.
"""
from utils import cli

ASKED = ("model_name", "questions", "batch_size", "learning_rate", "seed")  # what the language model depends on


def get_args_parser():
    parser = cli.make_parser(__doc__)
    parser.add_argument("--model_name", default="smollm2-135m", metavar="NAME",
                        help="the language model: a hub name, a folder, a .gguf file, smollm2-135m or gemma3-270m")
    parser.add_argument("--questions", default="configs/questions_captions.txt", metavar="FILE.txt",
                        help="four question templates, a line each: for the style, the count, the color and the size")
    parser.add_argument("--batch_size", type=cli.SIZE, default=32, help="captions an update")
    parser.add_argument("--learning_rate", type=cli.RATE, default=2e-4, help="learning rate of AdamW, falling to 0")
    parser.add_argument("--seed", type=cli.SEED, default=0, help="seed of the captions' order")
    cli.add_output_dir(parser, "the language model goes")
    return parser


def main(args) -> None:
    import sys
    from pathlib import Path

    from utils.ex2 import descriptions, truth
    from utils.language import loading
    from utils.runs import files

    # What is asked.
    folder = Path(args.output_dir)
    partial = folder.with_name(folder.name + ".partial")
    settings = {name: value for name, value in vars(args).items() if name in ASKED}
    if (folder / "warm_start.json").is_file():
        if files.read_json(folder / "warm_start.json", (), "name another --output_dir") != settings:
            raise cli.UserError(f"--output_dir {folder} was made with other options; name another")
        print(f"finished already -> {folder}")
        return
    if folder.is_file() or folder.is_dir() and any(folder.iterdir()):
        raise cli.UserError(f"--output_dir {folder} holds something else; name a new folder")
    loading.check_name(args.model_name)
    rows = truth.every_caption(truth.concepts(), descriptions.read_questions(args.questions))
    print(f"{args.model_name} learns {len(rows)} captions -> {folder}; loading ...", file=sys.stderr, flush=True)

    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    # Train.
    tokenizer = loading.load_tokenizer(args.model_name)
    tokenizer.chat_template = None
    model = loading.load_model(args.model_name, torch.float32)
    pairs = [{"prompt": loading.prompt(tokenizer, row["question"]), "completion": row["caption"]} for row in rows]
    trainer = SFTTrainer(
        model=model, processing_class=tokenizer, train_dataset=Dataset.from_list(pairs),
        args=SFTConfig(output_dir=str(partial), num_train_epochs=1, per_device_train_batch_size=args.batch_size,
                       learning_rate=args.learning_rate, lr_scheduler_type="linear", seed=args.seed, bf16=False,
                       use_cpu=not torch.cuda.is_available(), logging_strategy="no", save_strategy="no",
                       report_to="none"))
    loss = trainer.train().training_loss

    # Write: the folder has its name when it is complete.
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    cli.save_result(partial / "warm_start.json", settings)
    partial.replace(folder)
    print(f"mean loss of all updates: {loss:.2f} nats a token -> {folder}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
