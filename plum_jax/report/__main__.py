from plum_jax.cli import run
from plum_jax.report.command import main

raise SystemExit(run(main, name="report"))
