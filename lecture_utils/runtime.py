"""Find out what this machine allows, and choose the *scale* of the notebooks, which is decided only here.

``laptop`` (two cores, 2 GB of memory, no GPU) is the default. ``gpu`` needs a CUDA GPU with 15 GB or more, and a
notebook that asks for it (see ``setup``). At ``smoke``, the scale of the tests, every cell runs through the same code,
but training stops after a few steps, generation after a few tokens, and evaluations look at only a few rows. The
environment variable ``LECTURE_SCALE`` overrides the choice.
"""

import ctypes
import functools
import gc
import importlib.metadata
import json
import logging
import math
import os
import platform
import random
import re
import sys
import tempfile
import time
import warnings

import lecture_utils

SCALES = ("laptop", "gpu", "smoke")
GPU_BYTES = 14e9  # a T4 "with 16 GB" reports about 15.6e9 bytes


def scale() -> str:
    """Return ``LECTURE_SCALE`` if it is set, else ``"gpu"`` on a CUDA GPU with 15 GB or more, else ``"laptop"``."""
    if wanted := os.environ.get("LECTURE_SCALE"):
        if wanted not in SCALES:
            raise ValueError(f"LECTURE_SCALE is {wanted!r}, which is not a scale. Choose one of: {', '.join(SCALES)}.")
        return wanted
    import torch

    large = torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory >= GPU_BYTES
    return "gpu" if large else "laptop"


def smoke() -> bool:
    """Return whether the scale is ``smoke``. Only helpers call this, because a notebook's cells never ask for it."""
    return os.environ.get("LECTURE_SCALE") == "smoke"


def limited(number: int, most: int) -> int:
    """Return ``number`` (of steps, tokens or rows), but at smoke scale at most ``most``."""
    return min(number, most) if smoke() else number


def few(rows, most: int = 2):
    """Return ``rows``, but at smoke scale only the first ``most`` of them."""
    return rows[:most] if smoke() else rows


def spread(results, count: int):
    """Return ``count`` results (a list or a tensor). If ``few`` has left out rows, the results are repeated in turn."""
    if len(results) == count:
        return results
    indices = [i % len(results) for i in range(count)]
    return [results[i] for i in indices] if isinstance(results, list) else results[indices]


def require_positive(config, *names: str) -> None:
    """Check that sizes and rates are above 0, because others would train nothing, or in the wrong direction."""
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name}={getattr(config, name)}: it must be above 0.")


def sizes(laptop: dict, smoke: dict, gpu: dict | None = None) -> dict:
    """Return a notebook's sizes at this scale. ``smoke`` and ``gpu`` contain only those that differ from ``laptop``."""
    changes = {"laptop": {}, "smoke": smoke, "gpu": gpu or {}}
    if unknown := (set(smoke) | set(changes["gpu"])) - set(laptop):
        raise KeyError(f"laptop lacks {', '.join(sorted(unknown))}. Every size needs a value there.")
    return laptop | changes[scale()]


def device() -> str:
    """Return ``"cuda"`` at GPU scale (for each of several processes, this is its own GPU), else ``"cpu"``."""
    import torch

    return "cuda" if scale() == "gpu" and torch.cuda.is_available() else "cpu"


def device_map() -> dict[str, str | int]:
    """Return the ``device_map`` for ``from_pretrained`` that puts the whole model on this process's device."""
    return {"": int(os.environ.get("LOCAL_RANK", 0)) if device() == "cuda" else "cpu"}


def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies bf16 matrices faster than fp32 ones.

    This is measured in a tenth of a second, as the best of eight products of a 512 x 1024 and a 1024 x 1024 matrix. The
    environment variable ``LECTURE_BF16`` (``0`` or ``1``) overrides the result.
    """
    if (forced := os.environ.get("LECTURE_BF16")) in ("0", "1"):
        return forced == "1"
    # A CPU without bf16 takes a hundred times as long, which a small product already shows.
    return _bf16_ratio(256, tries=3) < 5 and _bf16_ratio(1024, tries=8) < 0.8


@functools.cache  # a busy machine must not give another answer in the next cell
def _bf16_ratio(size: int, tries: int) -> float:
    """Return the shortest time of some products (size / 2, size) x (size, size) in bf16, divided by that in fp32."""
    import torch

    best = {}
    for _ in range(tries):  # alternating, so that other work on the machine affects both types
        for dtype in (torch.bfloat16, torch.float32):
            a, b = torch.ones(size // 2, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
            start = time.perf_counter()
            a @ b
            best[dtype] = min(best.get(dtype, math.inf), time.perf_counter() - start)
    return best[torch.bfloat16] / best[torch.float32]


def compute_dtype():
    """Return the torch dtype for computations: bf16 if the hardware supports it, fp16 on an older GPU such as the T4
    (which only emulates bf16), and fp32 on an older CPU."""
    import torch

    if device() == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if cpu_has_bf16() else torch.float32


def seed_everything(seed: int = 0) -> None:
    """Seed the random number generators of Python, NumPy and torch (on all devices)."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def use_less_memory() -> None:
    """Reduce the memory of a small process at almost no cost in time. Call this before the first matrix product.

    oneDNN, torch's library for matrix products on CPUs, caches a compiled routine for each new shape, up to 1,024 of
    them, and rows of ever new lengths fill this cache. 32 are enough: training in notebook 08 then needs 1.39 GB at its
    peak instead of 1.62 GB. In addition, glibc (on Linux) keeps large freed blocks, in pieces, for reuse. We make it
    return blocks of 4 MB or more to the system. With 32 MB, a small model would save a tenth of each step, but notebook
    03 would need 0.15 GB more. We allow four arenas, because with two, the threads of a script waited for each other at
    every block, and a step took 100 ms instead of 60 ms.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 4 << 20)  # M_MMAP_THRESHOLD
        libc.mallopt(-8, 4)  # M_ARENA_MAX


def trim_memory() -> None:
    """Collect garbage and return freed memory to the system (with glibc) and to the GPU. This is useful after deleting
    a model on a machine with 2 GB of memory or on a GPU with 16 GB."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def use_eager_attention_on_cpu(model) -> None:
    """Use eager attention on a CPU, where it is faster than the fused kernel for rows of about 50 tokens: 40 training
    steps with a batch size of 4 took 21 s instead of 24 s."""
    if device() == "cpu":
        model.set_attn_implementation("eager")


def peak_memory_gb() -> float:
    """Return the peak resident memory of this process in GB (10^9 bytes), or 0.0 on Windows."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS, in units of 1,024 bytes elsewhere
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def peak_memory() -> str:
    """Return the peak memory of this process in words, with that of the GPU if there is one."""
    import torch

    gpu = f" and {torch.cuda.max_memory_allocated() / 1e9:.2f} GB of GPU memory" if device() == "cuda" else ""
    return f"{peak_memory_gb():.2f} GB of main memory{gpu}"


def quiet() -> None:
    """Hide other libraries' advice and inner progress bars, but not errors, and let datasets do without a home folder.
    Call this before importing transformers."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # otherwise trl's trainers report model and GPU to the hub
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")
    if "HF_DATASETS_CACHE" not in os.environ and not os.access(os.path.expanduser("~"), os.W_OK):  # a shared server
        os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp()
    if scale() != "gpu":  # at GPU scale, the bar is useful, because gigabytes are downloaded
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # cpp_extension: torch with CUDA on a machine without a GPU, as on Colab by default, warns when it compiles.
    for name in (
        "bitsandbytes", "torchao", "accelerate", "transformers", "trl", "torch.utils.cpp_extension", "lm_eval",
    ):  # fmt: skip
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    warnings.filterwarnings("ignore", message="IProgress not found")  # progress bars as text are good enough


def compile_nothing() -> None:
    """Keep bitsandbytes from compiling operations at first use: 20 s on a CPU, which our few calls do not repay."""
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def redact_secrets(text: str) -> str:
    """Return another program's output for a message or a bug report, without the user and password in addresses and
    without the values of environment variables whose names indicate a secret."""
    text = re.sub(r"(?<=://)[^/\s@]+@", "***@", text)
    for name, value in os.environ.items():
        if len(value) >= 8 and re.search(r"TOKEN|SECRET|PASSW|CREDENTIAL|KEY", name.upper()):
            text = text.replace(value, "***")
    return text


def versions(*packages: str) -> str:
    """Return one line for each package, with its name and its installed version."""
    width = max(map(len, packages), default=0)
    lines = []
    for name in packages:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        lines.append(f"{name:<{width}}  {version}")
    return "\n".join(lines)


def installed_from() -> tuple[str, str]:
    """Return (branch or tag, commit) from which pip installed this package, or ("", "") if it was not from git."""
    try:
        recorded = importlib.metadata.distribution("lecture-utils").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        recorded = None
    source = json.loads(recorded or "{}").get("vcs_info", {})
    return source.get("requested_revision", ""), source.get("commit_id", "")


def check_lecture(wanted: str) -> None:
    """Raise RuntimeError unless this package has the version and the branch for which a notebook was written.

    wanted: ``"version@branch"``. The branch is compared only if pip installed the package from git, as on Colab. In a
    checkout, the notebook and the package always come from the same branch.
    """
    version, _, branch = wanted.partition("@")
    ref, _ = installed_from()
    if (version, branch) != (lecture_utils.__version__, ref or branch):
        raise RuntimeError(
            f"This notebook belongs to lecture {wanted}, but lecture-utils {lecture_utils.__version__}"
            f"{'@' + ref if ref else ''} is installed. Open the notebook again from its badge, restart the runtime, "
            "and run this cell first. In a checkout, run `git pull` and `make setup`."
        )


def setup(*packages: str, seed: int = 0, lecture: str = "", gpu: bool = False) -> str:
    """Prepare a notebook and return the scale: hide the noise of libraries, set the seed, print the versions of
    ``packages``, and change to a temporary folder if the current one cannot be written to.

    lecture: the version and the branch for which the notebook was written (see ``check_lecture``).
    gpu: whether the notebook can use a GPU. If not, it runs at laptop scale unless LECTURE_SCALE says otherwise.
    """
    if lecture:
        check_lecture(lecture)
    if not gpu:
        os.environ.setdefault("LECTURE_SCALE", "laptop")
    # Update progress bars only once a second. A bar of widgets sends two or three messages for each update. nbval reads
    # none before the cell has ended, and after a thousand the kernel drops the rest, even the one that ends the cell.
    os.environ.setdefault("TQDM_MININTERVAL", "1")
    quiet()
    seed_everything(seed)
    if scale() != "gpu":
        use_less_memory()
        compile_nothing()
    print(versions("lecture-utils", *packages))
    print(f"scale: {scale()}, device: {device()}, Python {platform.python_version()}")
    if not os.access(".", os.W_OK):
        os.chdir(tempfile.mkdtemp(prefix="lecture-"))
        print(f"This notebook's folder cannot be written to, so what it saves goes to {os.getcwd()}")
    return scale()
