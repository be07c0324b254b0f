"""The command `ft`: the group of all commands, and what becomes of their errors. Nothing heavy is imported at start."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import click

from facetrain import __version__
from facetrain.commands import cleaning, data, exporting, importing, measuring, reporting, training
from facetrain.commands.common import FOLDER, fail
from facetrain.errors import FacetrainError, UserError

FULL = (errno.ENOSPC, errno.EDQUOT)


class Group(click.Group):
    """Lists commands in the order of the pipeline, and turns known errors into one line and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "ft"
            fail(f"{error.format_message().rstrip('.')}: `{command} --help` says how", 2)
        except KeyboardInterrupt:
            fail("interrupted: nothing is lost, run the same command again to go on", 130)
        except UserError as error:
            fail(str(error), 2)
        except FacetrainError as error:
            fail(str(error), 1)
        except BrokenPipeError:
            os._exit(141)  # the reader of our output has gone
        except OSError as error:
            if error.errno is None:
                raise
            where = f"{error.filename}: " if error.filename is not None else ""
            again = ": make room, and run the same command again to go on" if error.errno in FULL else ""
            fail(f"{where}{os.strerror(error.errno)}{again}", 1)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="facetrain")
@click.option(
    "-C",
    "workspace",
    type=FOLDER,
    metavar="DIR",
    help="The workspace's folder (where .ft/ lies). Default: FT_WORKSPACE, else found upwards from here.",
)
@click.pass_context
def main(ctx: click.Context, workspace: Path | None) -> None:
    """From a folder of photographs of people to a trained, measured face-embedding network.

    \b
        ft align raw/ aligned/ --size 96 -j 8
        ft prune --min 10
        ft split 0.1
        ft train
        ft plot-loss

    RAW holds one folder of photographs per person. Nothing in it is ever changed.
    """
    ctx.obj = workspace


for command in (
    data.synth,
    importing.import_,
    data.align,
    data.index,
    cleaning.clean,
    data.prune,
    data.split,
    data.cache,
    data.export_tree,
    exporting.export,
    training.train,
    measuring.evaluate,
    measuring.embed,
    measuring.plot_loss,
    reporting.report,
    measuring.status,
):
    main.add_command(command)


if __name__ == "__main__":
    sys.exit(main())
