"""Train a real model as a parameter set says, on one GPU or many.

    python experiments/train.py experiments/models/llama3-8b.yaml --plan --gpus 4 --sharing zero2
    accelerate launch --config_file experiments/launch/zero2.yaml \
        experiments/train.py experiments/models/llama3-8b.yaml --output results/llama3-8b

Run it from the repository's root. Started again, it goes on where it was; see r2d_core.training
for what it writes. Several machines: on each, --num_machines, --machine_rank, --main_process_ip,
--main_process_port and --num_processes (of all machines together) of `accelerate launch`, and an
output folder that all of them see.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, get_args

from r2d_core.errors import InputError
from r2d_core.parameter_sets import R2D_R1_ROWS, read_parameter_set, train_parameter_set
from r2d_core.planning import Sharing
from r2d_core.processes import end_processes, end_with_launcher


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train a real model, or plan for it.")
    parser.add_argument("parameters", metavar="experiments/models/NAME.yaml")
    parser.add_argument("--output", help="folder to write to")
    parser.add_argument("--model", help="another place of the model: a folder or a name on the hub")
    parser.add_argument("--data", help="other training data: a file or a name on the hub")
    parser.add_argument(
        "--exclude", nargs="+", metavar="FILE", help="behaviors that are not to be trained on"
    )
    parser.add_argument(
        "--recipe", choices=["r2d", "paper"], help="paper: the authors' run, defects included"
    )
    parser.add_argument("--plan", action="store_true", help="say what it takes, and do nothing")
    parser.add_argument("--gpus", type=int, default=1, help="of the plan")
    parser.add_argument("--gpu-gb", type=float, default=80, help="memory of each, of the plan")
    parser.add_argument("--tflops", type=float, default=312, help="of each, of the plan (A100)")
    parser.add_argument(
        "--examples", type=int, default=R2D_R1_ROWS, help="of the data, of the plan"
    )
    parser.add_argument("--mean-tokens", type=int, default=1000, help="of one, of the plan")
    parser.add_argument("--sharing", choices=get_args(Sharing), default="ddp", help="of the plan")
    given = parser.parse_args(arguments)
    if not given.plan and given.output is None:
        parser.error("give --output, or --plan")
    for name in ("gpus", "gpu_gb", "tflops", "examples", "mean_tokens"):
        if not getattr(given, name) > 0:
            parser.error(f"--{name.replace('_', '-')}: expected a number above 0")
    if "RANK" in os.environ:  # one of several, which `accelerate launch` started
        end_with_launcher()
    try:
        said = {name: getattr(given, name) for name in ("model", "data", "exclude", "recipe")}
        others = {name: value for name, value in said.items() if value}
        parameters = read_parameter_set(given.parameters, **others)
        if given.plan:
            machine: dict[str, Any] = {
                "gpus": given.gpus,
                "examples": given.examples,
                "mean_tokens": given.mean_tokens,
                "gpu_bytes": int(given.gpu_gb * 10**9),
                "peak_flops": given.tflops * 1e12,
            }
            plan = parameters.plan(sharing=given.sharing, **machine)
            print(plan)
            print(
                f"  (at {given.tflops:g} Tflop/s on each GPU; "
                f"{given.mean_tokens} tokens an example, {given.examples} examples an epoch)"
            )
            if not plan.fits:
                ways: tuple[Sharing, ...] = get_args(Sharing)
                fit = [way for way in ways if parameters.plan(sharing=way, **machine).fits]
                mend = "more GPUs, gradient_checkpointing: true or a shorter max_length"
                print(f"  it fits with --sharing {' or '.join(fit)}" if fit else f"  try {mend}")
            return 0
        result = train_parameter_set(parameters, given.output)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        end_processes()
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted; started again, it goes on from its last checkpoint (save_steps)",
            file=sys.stderr,
        )
        return 130
    print(f"{result.steps} steps in {result.seconds:.0f} s: {result.model_dir}")
    end_processes()
    return 0


if __name__ == "__main__":
    sys.exit(main())
