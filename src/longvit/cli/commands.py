"""Command tree of `longvit`; one file per command."""

from __future__ import annotations

from cyclopts import App, Parameter

from longvit import __version__
from longvit.cli.benchmark import benchmark
from longvit.cli.canvas import canvas
from longvit.cli.cohort import cohort
from longvit.cli.completion import completion
from longvit.cli.convert import convert
from longvit.cli.demo import demo
from longvit.cli.doctor import doctor
from longvit.cli.embed import embed
from longvit.cli.encoders import encoders
from longvit.cli.evaluate import evaluate
from longvit.cli.features import features
from longvit.cli.fetch import fetch
from longvit.cli.info import info
from longvit.cli.init import init
from longvit.cli.plan import plan
from longvit.cli.predict import predict
from longvit.cli.pretrain import pretrain
from longvit.cli.recipes import recipes
from longvit.cli.reproduce import reproduce
from longvit.cli.site_check import site_check
from longvit.cli.status import status
from longvit.cli.tables import tables
from longvit.cli.tiles import tiles
from longvit.cli.train import train
from longvit.cli.view import view
from longvit.config import recipe_config

app = App(
    name="longvit",
    help="One model for a whole slide: from the gigapixel file to the prediction.",
    version=f"longvit {__version__}",
    help_format="markdown",
    help_epilogue="Start with `longvit demo`. Every command has its own `--help` with examples.",
    config=recipe_config,
    default_parameter=Parameter(negative_iterable=()),  # no --empty-split beside --split
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
app.command(demo, sort_key=0)
app.command(doctor, sort_key=1)
app.command(info, sort_key=2)
app.command(view, sort_key=2)
app.command(init, sort_key=3)
app.command(train, sort_key=3)
app.command(pretrain, sort_key=3)
app.command(predict, sort_key=4)
app.command(embed, sort_key=5)
app.command(canvas, sort_key=5)
app.command(status, sort_key=5)
app.command(tiles, sort_key=6)
app.command(features, sort_key=6)
app.command(encoders, sort_key=6)
app.command(fetch, sort_key=6)
app.command(convert, sort_key=6)
app.command(cohort)
app.command(benchmark, sort_key=10)
app.command(evaluate, sort_key=10)
app.command(site_check, sort_key=10)
app.command(tables, sort_key=11)
app.command(recipes, sort_key=12)
app.command(reproduce, sort_key=12)
app.command(plan, sort_key=13)
app.command(completion, sort_key=14)
