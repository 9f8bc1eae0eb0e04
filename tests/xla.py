"""What XLA is told in the tests and in the processes that they start."""

import importlib.metadata

# One thread makes a small program in less time than several that share it out.
_QUICK = ["--xla_cpu_parallel_codegen_split_count=1"]
# Loops by LLVM alone: half the time to compile. The flag is gone since 0.11, where an unknown
# flag ends the process.
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    _QUICK.append("--xla_cpu_use_fusion_emitters=false")
QUICK = " ".join(_QUICK)


def flags(devices: int) -> str:
    """Return the XLA_FLAGS of a process whose CPU shows that many devices."""
    return f"{QUICK} --xla_force_host_platform_device_count={devices}"
