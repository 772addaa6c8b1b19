"""PLUM fine-tuned on all subsets of PARTONOMY: stage 2 of the paper (arXiv 2505.20759), after configs/plum.py."""

from configs.common import faithful, parse_arg
from configs.plum import EPOCH, IMAGES, paper_config


def get_config(arg=""):
    """Stage 2: `--config=configs/partonomy.py:size=13b --config.base=STAGE1 --config.data.root=DIR`.

    `config.data.root` holds question files, or a folder of them for each subset: all are trained on together. `config.base` is
    what `plum convert --checkpoint W --to base` made of the run of stage 1 (docs/recipe.md), or any other base weights.

    Args:
      arg: size=7b|13b; reference=0|1, 1 does what the reference's code does where that differs from what is right
        (docs/faithful.md).
    """
    options = parse_arg(arg, size=("7b", "13b"), reference=False)
    config = paper_config(options.size)
    config.name = f"partonomy_{options.size}"
    config.data.sources = (dict(name="explanatory", weight=1.0),)
    config.train.steps = EPOCH  # one epoch
    if options.reference:
        faithful(config, "ft")
        config.data.global_batch = IMAGES * config.data.micro_batches
        config.name += "_reference"
    return config
