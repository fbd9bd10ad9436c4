"""Is everything exact on a GPU, and what does it cost there? One table, and the same as JSON.

    bash scripts/check_gpu.sh                              # on a machine with a CUDA GPU, under 8 minutes
    python -m scripts.check_gpu --cpu                      # a small form of it on the CPU, under 2 minutes
    python -m scripts.check_gpu --only cost profile        # some of the checks

Needs torch, timm, open_clip and transformers, no network and no trained weights: models have random weights, or are
those that ship with the repository. Every check stands by itself. One that fails is reported with its reason, and the
rest goes on; one whose packages are missing is listed. --output is written again after each check.

    sums        terms of an image add up to the model's own output: float32 without TF32, float16, bfloat16
    processor   the same terms on the GPU as on the CPU
    kernels     the same terms from every kernel that torch may choose for attention
    compact     terms made again from compact storage, and moments, against the full terms
    textspan    TextSpan of one head at 50,000 images x 1,024 dimensions x 3,498 texts
    profile     where a plain and a decomposed pass of ViT-H-14 in bfloat16 spend their time
    cost        the time of the decomposition over that of a plain encode_image pass, taken in turns
    walk        the same for networks that utils/decompose/walk.py takes apart
    loop        compute_prs.py on rendered scenes: images a second, where the time goes, memory
    rloo        one step of train.py, with and without 8 bit
    compiled    sums once more, with --compile
"""
import os

from scripts import gpu_checks
from scripts.gpu_machine import Machine, Report, show
from utils.cli import UserError, make_parser, run

CHECKS = ("sums", "processor", "kernels", "compact", "textspan", "profile", "cost", "walk", "loop", "rloo",
          "compiled")


def get_args_parser():
    parser = make_parser(__doc__)
    parser.add_argument("--cpu", action="store_true", help="a small form on the CPU (default: all of it, on the GPU)")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=CHECKS, metavar="CHECK",
                        help=f"which of {', '.join(CHECKS)} (default: all)")
    parser.add_argument("--output", default="gpu.json", metavar="FILE.json", help="the result (default: %(default)s)")
    return parser


def main(args) -> None:
    import time

    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched
    machine = Machine(args.cpu)
    if not args.cpu and not machine.cuda:
        raise UserError("there is no CUDA GPU here; --cpu runs the small form on the CPU")
    report = Report(args.output, machine.about())
    print(", ".join(f"{name} {value}" for name, value in (machine.about() | machine.about()["versions"]).items()
                    if name != "versions"), flush=True)
    report.save()
    for name in [check for check in CHECKS if check in args.only]:
        start = time.perf_counter()
        try:
            getattr(gpu_checks, name)(machine, report)
        except ImportError as error:
            report.missing(name, str(error))
        except Exception as error:  # whatever it is, the other checks go on
            if args.debug:
                raise
            report.failed(name, error)
        report.content["seconds"][name] = time.perf_counter() - start
        machine.free()
        report.save()
    spent = report.content["seconds"]
    print(f"{'seconds':<10}" + "  ".join(f"{name} {show(value)}" for name, value in spent.items()) +
          f"  all {show(sum(spent.values()))}")
    if report.content["failed"]:
        raise UserError(f"failed: {', '.join(report.content['failed'])}; the reasons stand above and in {args.output}")
    print(f"all passed -> {args.output}")


if __name__ == "__main__":
    run(main, get_args_parser())
