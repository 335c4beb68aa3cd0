"""What a bug report needs to say about this machine: ``python -m lecture_utils.report``."""

import os
import platform

import lecture_utils
from lecture_utils import runtime

REPORTED = (
    "torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets", "numpy", "safetensors", "gguf",
    "matplotlib", "IPython", "ipykernel", "jupyterlab", "nbconvert", "nbval",
)  # fmt: skip


def report() -> str:
    """Return what a bug report needs to say about this machine and its packages, and nothing private."""
    import torch

    ref, commit = runtime.installed_from()
    card = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    lines = {
        "lecture": f"{lecture_utils.__version__} {ref} {commit[:12]}".strip(),
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Colab": "yes" if "COLAB_RELEASE_TAG" in os.environ else "no",
        "Binder": "yes" if "BINDER_REPO_URL" in os.environ else "no",
        "cores": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}, "
        f"torch uses {torch.get_num_threads()}",
        "bf16 on the CPU": "yes" if runtime.cpu_has_bf16() else "no",
        "GPU": card,
        "scale": runtime.scale(),
        "compute type": str(runtime.compute_dtype()).removeprefix("torch."),
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {said}" for name, said in lines.items()) + "\n\n" + runtime.versions(*REPORTED)


if __name__ == "__main__":
    runtime.quiet()
    print(report())
