"""Where the time of our step goes on a CPU: each operation of PyTorch and each kernel of ours, timed while a step runs.

    python benchmarks/where.py mae-small ibot-small-4-locals [--steps 5] [--threads 2] [--kernels own|torch]
                               [--precision fp32]

Shares are of all that is timed: operations are watched below autograd, in steps that have settled, so that data is
in the cache or not as in any step. What Python and autograd take beside them is not shown, as watching adds to it.
(PyTorch's profiler allocates between the tensors, whose memory is then mapped anew in each step: its times of large
tensors are three times too long here.)
"""

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = {
    "products": (
        "mm",
        "addmm",
        "bmm",
        "convolution",
        "convolution_backward",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "AdamW, averages, clipping": (
        "_fused_adamw_",
        "adamw",
        "squares_of",
        "_foreach_lerp_",
        "_foreach_norm",
        "_foreach_mul_",
    ),
    "casts": ("_to_copy", "copy_"),
}
"""operations by name; what else `unmask/passes` does is a kind of its own, and so is the rest"""


def kind_of(name: str, rest: str) -> str:
    return next((kind for kind, names in KINDS.items() if name in names), rest)


def watch(name: str, steps: int, kernels: Any, precision: str) -> tuple[float, dict[str, float]]:
    """Seconds of an unwatched step, and of each kind of operation in a watched one."""
    from steps import cases, ours
    from torch.utils._python_dispatch import TorchDispatchMode

    from unmask.passes import block, images, losses, weights

    seconds: dict[str, float] = defaultdict(float)

    def timed(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[kind] += time.perf_counter() - start

        return call

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
            return timed(kind_of(func.overloadpacket.__name__, "other operations"), func)(*args, **(kwargs or {}))

    class Kernels:
        def __getattr__(self, name: str) -> Any:
            return timed(kind_of(name, "our kernels"), getattr(library(), name))

    library, step = block.library, ours.make(cases.case(name), precision, kernels)
    for _ in range(6):
        step()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    whole = (time.perf_counter() - start) / steps
    block.library = losses.library = images.library = weights.library = Kernels  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with Watch():
            step()
            seconds.clear()
            for _ in range(steps):
                step()
    finally:
        block.library = losses.library = images.library = weights.library = library
    return whole, {kind: took / steps for kind, took in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", help="of benchmarks/step.py")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kernels", choices=("own", "torch"), default="own")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="auto: the processor's")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    from unmask import waiting

    waiting.settle()  # before torch is imported
    import torch

    from unmask.parallel import hardware_precision

    torch.set_num_threads(arguments.threads)
    precision = arguments.precision
    if precision == "auto":
        precision = hardware_precision(torch.device("cpu"))
    for name in arguments.cases:
        whole, kinds = watch(name, arguments.steps, arguments.kernels, precision)
        both = sum(kinds.values())
        shown = ", ".join(f"{kind} {took / both:.1%}" for kind, took in sorted(kinds.items(), key=lambda k: -k[1]))
        print(f"{name}, {precision}: {whole * 1e3:.0f} ms a step; {shown}", flush=True)


if __name__ == "__main__":
    main()
