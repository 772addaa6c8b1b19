"""`plum train` with the data sets of source_fixtures.py in place of ade20k, vqa and reason; record 1 of vqa is broken."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_pipelines.kinds import KINDS, Kind
from plum_jax.train import main

for name in ("ade20k", "vqa", "reason"):
    options = (("dataset", name), ("broken", (1,) if name == "vqa" else ()))
    KINDS[name] = Kind(KINDS[name].family, "source_fixtures:FakeSource", options)
raise SystemExit(main(sys.argv[1:]))
