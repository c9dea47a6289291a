"""Build the kernels for the processor at hand, and load them.

The compiler takes half a second, so nothing is kept: each process builds into a folder of its own that is gone once
the library is loaded. Nothing of torch's is compiled against. The library must share torch's OpenMP runtime, whose
threads it works with: a second one would have threads of its own, that fight torch's for the cores.
"""

import ctypes
import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

SOURCES = [str(Path(__file__).with_name(name)) for name in ("block.c", "losses.c", "images.c", "weights.c")]
MAPS = Path("/proc/self/maps")
FLAGS = (
    "-std=gnu11 -O3 -fopenmp -fPIC -Wall -Wextra"
    " -fno-math-errno -fno-trapping-math"  # roundings and roots become one instruction
)
OF_PROCESSOR = {"x86_64": "-march=native -mprefer-vector-width=512", "aarch64": "-mcpu=native"}
SECONDS = 60

ADDRESS, SIZE, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
SIGNATURES = {
    "norm_forward": [INT, *3 * [SIZE], *10 * [ADDRESS], FLOAT, *3 * [ADDRESS]],
    "norm_backward": [INT, *3 * [SIZE], *18 * [ADDRESS]],
    "gelu_forward": [INT, SIZE, SIZE, *3 * [ADDRESS]],
    "gelu_backward": [INT, SIZE, SIZE, *4 * [ADDRESS]],
    "split": [INT, *4 * [SIZE], ADDRESS, ADDRESS, FLOAT, ADDRESS],
    "join": [INT, *4 * [SIZE], ADDRESS, FLOAT, ADDRESS, ADDRESS],
    "softmax_forward": [INT, SIZE, SIZE, ADDRESS, ADDRESS, SIZE],
    "softmax_backward": [INT, SIZE, SIZE, ADDRESS, ADDRESS],
    "pixel_error": [INT, SIZE, ADDRESS, ADDRESS, *5 * [SIZE], INT, ADDRESS, FLOAT, ADDRESS, ADDRESS],
    "normalize": [INT, *3 * [SIZE], *4 * [ADDRESS]],
    "distill": [INT, SIZE, SIZE, ADDRESS, ADDRESS, FLOAT, ADDRESS, FLOAT, ADDRESS, SIZE, *6 * [ADDRESS]],
    "adamw": [INT, SIZE, *10 * [ADDRESS], *4 * [FLOAT]],
    "squares_of": [INT, SIZE, *4 * [ADDRESS]],
    "sample_forward": [INT, SIZE, SIZE, ADDRESS, ADDRESS, INT, FLOAT, *5 * [ADDRESS]],
    "sample_backward": [INT, SIZE, SIZE, *6 * [ADDRESS], FLOAT, ADDRESS],
}
"""what the kernels take"""


class Unavailable(RuntimeError):
    """The kernels can't be had here; the message says why."""


class _Switch:
    on = True


def switch(on: bool) -> None:
    """Let this process use the kernels, as it does from the start, or PyTorch's own alone."""
    _Switch.on = on


def ready() -> bool:
    """Whether to use the kernels; the first call builds them. Blocks that are compiled or exported do not."""
    return _Switch.on and not torch.compiler.is_compiling() and why_not() is None


def which() -> str:
    """The kernels of this process, in words: ours, or PyTorch's and why."""
    if not _Switch.on:
        return "PyTorch's, as asked"
    why = why_not()
    return "ours" if why is None else f"PyTorch's: {why}"


@functools.cache
def why_not() -> str | None:
    """Why this process has no kernels: None if it has."""
    try:
        library()
    except Unavailable as why:
        return str(why)
    return None


@functools.cache
def library() -> ctypes.CDLL:
    """The built kernels.

    Raises:
        Unavailable: no GCC, nowhere to build, another OpenMP runtime, a processor or system this is not written for.
    """
    try:
        return _built()
    except (OSError, ValueError) as why:  # nowhere to write, /proc hidden, quotes in CC that do not close
        raise Unavailable(f"{type(why).__name__}: {why}") from why


def _built() -> ctypes.CDLL:
    flags = OF_PROCESSOR.get(platform.machine())
    if platform.system() != "Linux" or flags is None:
        raise Unavailable(
            f"written for Linux on x86_64 or aarch64, this is {platform.system()} on {platform.machine()}"
        )
    runtime = _runtime()
    with tempfile.TemporaryDirectory(prefix="unmask-", ignore_cleanup_errors=True) as folder:
        built, shared = [f"{folder}/{Path(source).stem}.o" for source in SOURCES], f"{folder}/passes.so"
        for source, there in zip(SOURCES, built, strict=True):
            _compile(*FLAGS.split(), *flags.split(), "-c", source, "-o", there)
        _compile("-shared", *built, runtime, "-lm", "-o", shared)
        if not Path(shared).exists():
            raise Unavailable("the compiler made nothing; is it GCC? Install gcc, or name one by the variable CC")
        before = _runtimes()
        try:
            loaded = ctypes.CDLL(shared)
        except OSError as why:
            raise Unavailable(
                f"{why}; is {tempfile.gettempdir()} mounted noexec? Set TMPDIR to another folder"
            ) from why
    more = _runtimes() - before
    if more:
        raise Unavailable(f"they would bring a second OpenMP runtime, {', '.join(sorted(more))}")
    for name, arguments in SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, None
    return loaded


def _compile(*arguments: str) -> None:
    command = shlex.split(os.environ.get("CC", "")) or [shutil.which("gcc") or shutil.which("cc") or ""]
    if not shutil.which(command[0]):
        lacking = f"CC names {command[0]}, which is not found" if command[0] else "no C compiler is found"
        raise Unavailable(f"{lacking}; install gcc, or name it by the variable CC")
    try:
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as why:
        raise Unavailable(f"{shlex.join(command)}: {why}") from why
    if done.returncode:
        said = (done.stderr or done.stdout).strip().partition("\n")[0][:300] or "it said nothing"
        raise Unavailable(f"{shlex.join(command)} failed with {done.returncode}: {said}")


def _runtimes() -> set[str]:
    """Files of the OpenMP runtimes in this process."""
    files = {line.split(maxsplit=5)[5] for line in MAPS.read_text().splitlines() if "/" in line}
    return {file for file in files if re.match(r"lib(gomp|omp|iomp5)[-.]", Path(file).name)}


def _runtime() -> str:
    """The one that torch brought, beside which others may be here; GCC's code can use no other than libgomp."""
    home = Path(torch.__file__).resolve().parent
    ours = [path for path in sorted(_runtimes()) if path.startswith((f"{home}/", f"{home}.libs/"))]
    found = ours or sorted(_runtimes())  # a system's torch has a system's runtime
    if len(found) != 1 or "libgomp" not in found[0]:
        raise Unavailable(f"torch's threads are not of one libgomp, but of {found or 'none that is known'}")
    return found[0]


def addresses(*tensors: Tensor | None) -> list[int | None]:
    """Where tensors are in memory; of one without elements somewhere that is not NULL, which nobody reads.

    Raises:
        ValueError: a tensor is not contiguous or not in this process's memory.
    """
    found = []
    for tensor in tensors:
        if tensor is not None and not (tensor.is_contiguous() and tensor.device.type == "cpu"):
            raise ValueError(f"kernels read contiguous tensors on a CPU, this one has strides {tensor.stride()}")
        found.append(None if tensor is None else tensor.data_ptr() if tensor.numel() else 1)
    return found
