"""Align a language model with a VLM's preferences, by reinforcement learning (EX2, section 3).

    python train.py --config configs/train/emoji.yaml --output_dir output_dir/emoji_adapter   # embedded, on a CPU
    python train.py --config configs/train/published.yaml --dataset_name cub --data_root DIR \\
        --vlm_name openai/clip-vit-large-patch14 --output_dir output_dir/cub_adapter
    accelerate launch --config_file configs/accelerate/one_node.yaml train.py ...              # several GPUs

The language model answers questions about concepts; an answer's reward is its closeness, to the VLM, to the
images of its concept. Writes to --output_dir:

    adapter_model.safetensors, adapter_config.json   the LoRA adapter, for inference.py --model_name
    checkpoint-N/                                    the same after step N, every --save_freq steps, for --resume
    log.csv                                          reward, KL and signs of collapse at every log step
    reward_curve.png                                 the same as a picture
    top_descriptions.jsonl                           the ten best-rewarded descriptions at every log step
    train.json                                       the run's settings
"""
from utils import cli, processes
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
    parser.add_argument("--algorithm", default="grpo", choices=("grpo", "rloo"),
                        help="algorithm of TRL: grpo clips the ratio of each token, as PPO did, and rloo that of a "
                             "description, which suits few updates of a batch")
    parser.add_argument("--steps", type=cli.STEPS, default=1000, help="batches of fresh descriptions")
    parser.add_argument("--batch_size", type=cli.SIZE, default=32, help="descriptions a step, over all processes")
    parser.add_argument("--minibatch_size", type=cli.SIZE, default=8,
                        help="descriptions an update, over all processes")
    parser.add_argument("--per_device_batch_size", type=cli.SIZE, default=8,
                        help="descriptions a forward and backward pass; less needs less memory")
    parser.add_argument("--num_generations", type=cli.Number(int, 2, cli.SIZE.high), default=4,
                        help="descriptions of the same query in a batch, each the others' baseline")
    parser.add_argument("--epochs_per_batch", type=cli.POSITIVE, default=4,
                        help="times that each batch is gone over, with a clipped ratio")
    parser.add_argument("--learning_rate", type=cli.RATE, default=1.41e-5, help="learning rate of AdamW, constant")
    parser.add_argument("--max_grad_norm", type=cli.WEIGHT, default=0.0,
                        help="longer gradients are cut to this length; 0 cuts none")
    parser.add_argument("--normalize_advantages", type=cli.boolean, default=True, metavar="True|False",
                        help="divide the advantages of a batch by a standard deviation: grpo by that of its rewards, "
                             "rloo by their own")
    parser.add_argument("--beta", type=cli.WEIGHT, default=0.2,
                        help="weight of the KL divergence from the untrained model, in units of the reward; with --kl "
                             "adaptive, at first")
    parser.add_argument("--kl", default="adaptive", choices=("adaptive", "fixed"),
                        help="adaptive: --beta moves towards a KL divergence of 10 nats a description, as published")
    parser.add_argument("--max_new_tokens", type=cli.SIZE, default=32, help="tokens a description")
    parser.add_argument("--lora_r", type=cli.RANK, default=16, help="rank of the adapter")
    parser.add_argument("--lora_alpha", type=cli.POSITIVE, default=32, help="scale of the adapter")
    parser.add_argument("--lora_dropout", type=cli.FRACTION, default=0.05, help="dropout of the adapter's input")
    parser.add_argument("--load_in_8bit", action="store_true",
                        help="language model in 8 bits, on CUDA (default: bfloat16)")
    parser.add_argument("--load_in_4bit", action="store_true",
                        help="language model in 4 bits (nf4), on CUDA (default: bfloat16)")
    parser.add_argument("--use_vllm", action="store_true",
                        help="generate with vLLM, on CUDA; the language model is then held in float32, since TRL "
                             "merges the adapter into it at every step and takes it out again")
    parser.add_argument("--vllm_mode", default="colocate", choices=("colocate", "server"),
                        help="vLLM on the trainer's GPUs, or as a server of its own (trl vllm-serve)")
    parser.add_argument("--vllm_server_base_url", default="http://localhost:8000", metavar="URL",
                        help="URL of that server")
    parser.add_argument("--vllm_gpu_memory_utilization", type=cli.FRACTION, default=0.3,
                        help="share of a GPU's memory for vLLM beside the trainer")
    parser.add_argument("--questions", default="configs/questions.txt", metavar="FILE.txt",
                        help="question templates with {concept}, {a concept} or {concepts}, one a line; or the "
                             "published JSON list")
    parser.add_argument("--seed", type=cli.SEED, default=0, help="seed of the queries, the adapter and the sampling")
    parser.add_argument("--save_freq", type=cli.POSITIVE, default=100, help="steps between checkpoints")
    parser.add_argument("--log_freq", type=cli.POSITIVE, default=1, help="steps between log lines")
    parser.add_argument("--report_to", default="csv", choices=("csv", "tensorboard", "none"),
                        help="where the log goes besides the screen")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --output_dir")
    return parser


def main(args) -> None:
    with processes.alone(args.output_dir):  # two at once would write each other's checkpoints
        train(args)


def train(args) -> None:
    import sys
    import warnings
    from functools import partial
    from pathlib import Path

    from utils.data import concepts
    from utils.ex2 import descriptions
    from utils.language import loading
    from utils.models import names
    from utils.runs import files

    # Begin, go on, or nothing to do.
    folder = Path(args.output_dir)
    settings = {name: value for name, value in vars(args).items() if name not in FREE}
    started = (folder / "train.json").is_file()
    if started and not args.resume:
        raise UserError(f"{folder} holds a run already; continue it with --resume, or name another --output_dir")
    if args.resume and not started:
        raise UserError(f"{folder} holds no run to resume; leave --resume out to begin one")
    before = files.read_json(folder / "train.json", (), "name another --output_dir") if started else dict(settings)
    asked = before.pop("prompts_sha256", None)
    if before != settings:
        changed = [f"{name} ({before.get(name)}, and now {settings.get(name)})"
                   for name in sorted(settings.keys() | before.keys()) if settings.get(name) != before.get(name)]
        raise UserError(f"{folder} was begun with another {', '.join(changed)}; resume with the same options")
    if (folder / "adapter_model.safetensors").is_file():
        print(f"finished already -> {folder}")
        return

    # What can be wrong is found before the long work.
    sizes = [args.batch_size, args.minibatch_size, args.per_device_batch_size * processes.process_count()]
    if args.batch_size % args.num_generations or sizes[0] % sizes[1] or sizes[1] % sizes[2]:
        raise UserError(f"--batch_size {args.batch_size} must be a multiple of --num_generations "
                        f"{args.num_generations} and of --minibatch_size {args.minibatch_size}, and that of "
                        f"--per_device_batch_size {args.per_device_batch_size} (times {processes.process_count()} "
                        "processes)")
    if not args.vllm_server_base_url.startswith(("http://", "https://")):
        raise UserError(f"--vllm_server_base_url {args.vllm_server_base_url} is no URL; it looks like "
                        "http://localhost:8000")
    options = get_args_parser()
    for name in ("vllm_mode", "vllm_server_base_url", "vllm_gpu_memory_utilization"):
        if not args.use_vllm and getattr(args, name) != options.get_default(name):
            raise UserError(f"--{name} goes with --use_vllm; give that too, or leave it out")
    if args.lora_dropout == 1:
        raise UserError("--lora_dropout is 1.0; it must be below 1, for some of the input to be left")
    quantization = loading.quantization(args.load_in_8bit, args.load_in_4bit, args.use_vllm)
    loading.check_name(args.model_name)
    loading.check_use(args.model_name, quantization, args.use_vllm)
    names.split_vlm_name(args.vlm_name)
    questions = descriptions.read_questions(args.questions)
    if processes.is_main_process():  # at once: what follows takes a while to import
        print(f"{args.model_name} learns what {args.vlm_name} prefers on {args.dataset_name} -> {folder}; loading ...",
              file=sys.stderr, flush=True)
    images = concepts.load_concepts(args.dataset_name, args.data_root, args.split, args.num_concepts,
                                    args.num_images_for_reward, class_names=args.class_names)
    tokenizer = loading.load_tokenizer(args.model_name)

    import torch
    from accelerate import PartialState
    from transformers import PrinterCallback

    from utils.ex2 import rewards, training
    from utils.models.loading import load_vlm

    # At every checkpoint, peft looks for the base model on the hub, where a .gguf file's is not.
    warnings.filterwarnings("ignore", message="Unable to fetch remote file|Could not find a config file")
    state = PartialState(cpu=not torch.cuda.is_available())
    device = processes.pick_device(str(state.device))

    # The prompts of all steps, which a run that goes on must ask again.
    prompts = training.prompts(images.classes, questions, tokenizer,
                               args.steps * args.batch_size // args.num_generations, args.seed)
    settings["prompts_sha256"] = files.texts_hash([str(row["prompt"]) for row in prompts])
    if asked not in (None, settings["prompts_sha256"]):
        raise UserError(f"{folder} was begun with other questions or names of concepts; --questions, --class_names or "
                        "the data set has changed since: put it back, or name another --output_dir to begin anew")

    # The reward, and the language model that is to gain by it.
    vlm = load_vlm(args.vlm_name, device, args.vlm_16bit)
    with state.main_process_first():
        means = rewards.kept_image_means(folder, args.dataset_name, vlm, images,
                                         {"split": args.split, "vlm_16bit": args.vlm_16bit})
    recent: list[dict] = []
    reward = training.reward_function(partial(rewards.score, vlm, means), vlm.cut, images.classes, recent)
    precision = loading.precision(device)
    model = loading.load_model(args.model_name, torch.float32 if args.use_vllm else precision, quantization)

    # Train.
    minibatches, passes = sizes[0] // sizes[1], sizes[1] // sizes[2]
    updates = minibatches * args.epochs_per_batch
    log = training.Log(folder, recent, updates, args.report_to == "csv")
    kl = training.KLWeight(args.beta, args.batch_size, updates, args.kl == "adaptive",
                           args.algorithm == "grpo" and args.normalize_advantages)
    vllm = {"vllm_mode": args.vllm_mode, "vllm_server_base_url": args.vllm_server_base_url,
            "vllm_gpu_memory_utilization": args.vllm_gpu_memory_utilization} if args.use_vllm else {}
    trainer = training.make_trainer(
        args.algorithm, model, tokenizer, prompts, reward,
        {"r": args.lora_r, "lora_alpha": args.lora_alpha, "lora_dropout": args.lora_dropout},
        [kl, log, training.StepNames(folder, updates)], args.epochs_per_batch, minibatches, passes,
        args.normalize_advantages, vllm, output_dir=str(folder), max_steps=args.steps * updates,
        per_device_train_batch_size=args.per_device_batch_size, num_generations=args.num_generations,
        max_completion_length=args.max_new_tokens, learning_rate=args.learning_rate, max_grad_norm=args.max_grad_norm,
        beta=args.beta, seed=args.seed, bf16=precision == torch.bfloat16, use_cpu=device.type == "cpu",
        gradient_checkpointing=quantization is not None, logging_steps=args.log_freq * updates,
        save_steps=args.save_freq * updates, report_to="tensorboard" if args.report_to == "tensorboard" else "none")
    for callback in (log, kl):
        callback.trainer = trainer
    trainer.remove_callback(PrinterCallback)  # the log's own lines say it better
    if state.is_main_process:
        cli.save_result(folder / "train.json", settings)
    with state.main_process_first():  # it removes what was cut off
        last = training.complete_checkpoints(folder, updates)[-1:]
    trainer.train(resume_from_checkpoint=str(last[0]) if last else None)

    # Write.
    training.save_adapter(trainer, folder)
    if state.is_main_process:
        training.draw_log(folder, f"{args.model_name} rewarded by {args.vlm_name} on {args.dataset_name}")
        print(f"{args.steps} steps -> {folder}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
