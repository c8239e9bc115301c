"""Command ``expertile``: puts the commands together and turns bad input into one line and exit code 2."""

import os
import sys

import typer

from expertile.commands import (
    bench,
    boards,
    calibrate,
    demo,
    energy,
    evaluate,
    figures,
    fpga,
    gate_study,
    generate,
    inspect,
    layer,
    links,
    serve,
    trace,
    verilog,
)
from expertile.output import Mismatch
from sw_model.errors import ExpertileError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Turns a Mixture-of-Experts checkpoint into a verified hardware accelerator.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("inspect")(inspect.command)
app.command("layer")(layer.command)
app.command("generate")(generate.command)
app.command("eval")(evaluate.command)
app.command("calibrate")(calibrate.command)
app.command("trace")(trace.command)
app.command("gate-study")(gate_study.command)
app.command("energy")(energy.command)
app.command("figures")(figures.command)
app.command("verilog")(verilog.command)
app.command("fpga")(fpga.command)
app.command("boards")(boards.command)
app.command("links")(links.command)
app.command("serve")(serve.command)
app.command("demo")(demo.command)
app.command("bench")(bench.command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Exit codes: 0 done; 1 the hardware and the golden model differ; 2 bad input, with one line on stderr;
    130 interrupted. Anything else is a defect of Expertile and shows its traceback.
    """
    try:
        code = app(arguments, standalone_mode=False) or 0
    except (ExpertileError, typer.exceptions.TyperException, Mismatch) as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        if not isinstance(error, Mismatch):  # a simulator's own words keep their lines
            message = " ".join(message.split())
        if message:  # empty where help was shown instead
            print("error:", message, file=sys.stderr)
        code = 1 if isinstance(error, Mismatch) else 2
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        code = 130
    except (BrokenPipeError, SystemExit) as error:
        # The reader (head, less) has left. Rich makes it an exit with 1; Python would complain once more when
        # it flushes at exit.
        if not any(isinstance(e, BrokenPipeError) for e in (error, error.__context__)):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        code = 2
    sys.exit(code)
