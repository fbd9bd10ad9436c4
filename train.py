"""Align a language model with a VLM's preferences, by reinforcement learning (EX2, section 3).

    python train.py --config configs/train/emoji.yaml --output_dir output_dir/emoji_adapter   # embedded, on a CPU
    python train.py --config configs/train/published.yaml --dataset_name cub --data_root DIR \
        --vlm_name openai/clip-vit-large-patch14 --output_dir output_dir/cub_adapter
    accelerate launch --config_file configs/accelerate/one_node.yaml train.py ...              # several GPUs

The language model answers questions about concepts; an answer's reward is its closeness, to the VLM, to the
images of its concept. Writes to --output_dir:

    adapter_model.safetensors, adapter_config.json   the LoRA adapter, for inference.py --model_name
    checkpoint-N/                                    the same every --save_freq steps, with all that --resume needs
    log.csv                                          reward, KL and signs of collapse at every log step
    reward_curve.png                                 the same as a picture
    top_descriptions.jsonl                           the ten best-rewarded descriptions at every log step
    train.json                                       the run's settings
"""
from utils import cli
from utils.cli import UserError
from utils.data.datasets import WITH_CONCEPTS

FREE = ("config", "debug", "resume", "report_to", "output_dir")  # options that may change when a run is resumed


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_vlm_options(parser)
    cli.add_concept_options(parser, WITH_CONCEPTS)
    parser.add_argument("--model_name", default="mistralai/Mistral-7B-v0.1", metavar="NAME",
                        help="the language model: a hub name, a folder, a .gguf file, smollm2-135m or gemma3-270m")
    parser.add_argument("--output_dir", default="./output_dir/adapter", metavar="FOLDER",
                        help="where the adapter and the log go")
    parser.add_argument("--algorithm", default="rloo", choices=("rloo", "grpo"), help="trainer of TRL")
    parser.add_argument("--steps", type=cli.STEPS, default=1000, help="batches of fresh descriptions")
    parser.add_argument("--batch_size", type=cli.SIZE, default=32, help="descriptions a step, over all processes")
    parser.add_argument("--per_device_batch_size", type=cli.SIZE, default=8,
                        help="descriptions a forward and backward pass; less needs less memory")
    parser.add_argument("--num_generations", type=cli.Number(int, 2, cli.SIZE.high), default=4,
                        help="descriptions of the same query in a batch, each the others' baseline")
    parser.add_argument("--epochs_per_batch", type=cli.POSITIVE, default=4,
                        help="updates from each batch, with a clipped ratio")
    parser.add_argument("--learning_rate", type=cli.RATE, default=1.41e-5, help="of AdamW, constant")
    parser.add_argument("--beta", type=cli.WEIGHT, default=0.2,
                        help="weight of the KL divergence from the untrained model")
    parser.add_argument("--max_new_tokens", type=cli.SIZE, default=32, help="tokens a description")
    parser.add_argument("--lora_r", type=cli.RANK, default=16, help="rank of the adapter")
    parser.add_argument("--lora_alpha", type=cli.POSITIVE, default=32, help="scale of the adapter")
    parser.add_argument("--lora_dropout", type=cli.FRACTION, default=0.05, help="of the adapter's input")
    parser.add_argument("--load_in_8bit", action="store_true",
                        help="language model in 8 bits, on CUDA (default: bfloat16)")
    parser.add_argument("--load_in_4bit", action="store_true",
                        help="language model in 4 bits, on CUDA (default: bfloat16)")
    parser.add_argument("--use_vllm", action="store_true", help="generate with vLLM beside the trainer, on CUDA")
    parser.add_argument("--questions", default="configs/questions.txt", metavar="FILE.txt",
                        help="question templates with {concept}, one a line")
    parser.add_argument("--seed", type=cli.SEED, default=0, help="of the queries, the adapter and the sampling")
    parser.add_argument("--save_freq", type=cli.POSITIVE, default=100, help="steps between checkpoints")
    parser.add_argument("--log_freq", type=cli.POSITIVE, default=1, help="steps between log lines")
    parser.add_argument("--report_to", default="csv", choices=("csv", "tensorboard", "none"),
                        help="where the log goes besides the screen")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --output_dir")
    return parser


def main(args) -> None:
    import warnings
    from functools import partial
    from pathlib import Path

    from utils.data import datasets
    from utils.ex2 import descriptions
    from utils.language import loading
    from utils.models import names
    from utils.models.loading import load_vlm
    from utils.runs import files

    # Begin, go on, or nothing to do.
    folder = Path(args.output_dir)
    settings = {name: value for name, value in vars(args).items() if name not in FREE}
    started = (folder / "train.json").is_file()
    if started and not args.resume:
        raise UserError(f"{folder} holds a run already; continue it with --resume, or name another --output_dir")
    if args.resume and not started:
        raise UserError(f"{folder} holds no run to resume; leave --resume out to begin one")
    before = files.read_json(folder / "train.json", (), "name another --output_dir") if started else settings
    if before != settings:
        changed = [f"{name} ({before.get(name)}, and now {settings.get(name)})"
                   for name in sorted(settings.keys() | before.keys()) if settings.get(name) != before.get(name)]
        raise UserError(f"{folder} was begun with another {', '.join(changed)}; resume with the same options")
    if (folder / "adapter_model.safetensors").is_file():
        print(f"finished already -> {folder}")
        return

    # What can be wrong is found before the long work.
    if args.batch_size % args.num_generations or args.batch_size % args.per_device_batch_size:
        raise UserError(f"--batch_size {args.batch_size} should be a multiple of --num_generations "
                        f"{args.num_generations} and of --per_device_batch_size {args.per_device_batch_size} (times "
                        "the processes)")
    questions = descriptions.read_questions(args.questions)
    images = datasets.load_concepts(args.dataset_name, args.data_root, args.split, args.num_concepts,
                                    args.num_images_for_reward)
    names.split_vlm_name(args.vlm_name)
    quantization = "8bit" if args.load_in_8bit else "4bit" if args.load_in_4bit else None
    loading.check_use(args.model_name, quantization, args.use_vllm)
    tokenizer = loading.load_tokenizer(args.model_name)

    import torch
    from accelerate import PartialState
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    from utils.ex2 import rewards, training

    # At every checkpoint, peft looks for the base model on the hub, where a .gguf file's is not.
    warnings.filterwarnings("ignore", message="Unable to fetch remote file|Could not find a config file")
    state = PartialState(cpu=not torch.cuda.is_available())
    pass_size = args.per_device_batch_size * state.num_processes
    if args.batch_size % pass_size:
        raise UserError(f"--batch_size {args.batch_size} must be a multiple of --per_device_batch_size x processes, "
                        f"{pass_size}")
    device = cli.pick_device(str(state.device))

    # The reward, and the language model that is to gain by it.
    vlm = load_vlm(args.vlm_name, device, args.vlm_16bit)
    with state.main_process_first():
        means = rewards.kept_image_means(folder, args.dataset_name, vlm, images,
                                         {"split": args.split, "vlm_16bit": args.vlm_16bit})
    recent: list[dict] = []
    reward = training.reward_function(partial(rewards.score, vlm, means), images.classes, recent)
    model = loading.load_model(args.model_name, torch.bfloat16, quantization)
    lora = LoraConfig(r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout, task_type="CAUSAL_LM")
    number = args.steps * args.batch_size // args.num_generations
    prompts = training.prompts(images.classes, questions, tokenizer, number, args.seed)

    # Train.
    config, trainer_class = {"rloo": (RLOOConfig, RLOOTrainer), "grpo": (GRPOConfig, GRPOTrainer)}[args.algorithm]
    trainer = trainer_class(
        model=model, processing_class=tokenizer, train_dataset=Dataset.from_list(prompts), reward_funcs=reward,
        peft_config=lora,
        callbacks=[training.Log(folder, recent, args.epochs_per_batch, args.report_to == "csv")],
        args=config(
            output_dir=str(folder), max_steps=args.steps * args.epochs_per_batch, num_iterations=args.epochs_per_batch,
            per_device_train_batch_size=args.per_device_batch_size, num_generations=args.num_generations,
            gradient_accumulation_steps=args.batch_size // pass_size, max_completion_length=args.max_new_tokens,
            temperature=1.0, top_p=1.0, top_k=0, learning_rate=args.learning_rate, lr_scheduler_type="constant",
            beta=args.beta, use_vllm=args.use_vllm, shuffle_dataset=False, seed=args.seed, bf16=True,
            use_cpu=device.type == "cpu", gradient_checkpointing=quantization is not None,
            logging_steps=args.log_freq * args.epochs_per_batch, save_steps=args.save_freq * args.epochs_per_batch,
            report_to="tensorboard" if args.report_to == "tensorboard" else "none", disable_tqdm=True))
    trainer.remove_callback(PrinterCallback)  # the log's own lines say it better
    if state.is_main_process:
        cli.save_result(folder / "train.json", settings)
    last = training.complete_checkpoints(folder)[-1:]
    trainer.train(resume_from_checkpoint=str(last[0]) if last else None)

    # Write.
    training.save_adapter(trainer, folder)
    if state.is_main_process:
        training.draw_log(folder, f"{args.model_name} rewarded by {args.vlm_name} on {args.dataset_name}")
        print(f"{args.steps} steps -> {folder}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
