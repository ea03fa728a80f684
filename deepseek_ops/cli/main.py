"""``deepseek-ops``: JSON on stdout, one line per error on stderr, exit status 1."""

from __future__ import annotations

import importlib
import sys

import typer

from deepseek_ops.core.errors import DeepSeekOpsError

COMMANDS = {
    "init": ("deepseek_ops.cli.init", "init", "Make a model repository, or give an existing one what it lacks."),
    "checkout": ("deepseek_ops.cli.lfs_client", "checkout", "Restore code and weights of a release tag together."),
    "validate": ("deepseek_ops.cli.validate", "validate", "Check a pipeline file."),
    "plan": ("deepseek_ops.cli.plan", "plan", "Which stages a run of a ref would do, or find done, and why."),
    "schema": ("deepseek_ops.cli.validate", "schema", "Print the JSON Schema of pipeline files."),
    "why": (
        "deepseek_ops.cli.why",
        "why",
        "Say what a model, run, tag, commit or branch was made of, and what came of it.",
    ),
    "log": ("deepseek_ops.cli.experiments", "log", "Show the experiments of a repository, from Git alone."),
    "experiments": ("deepseek_ops.cli.experiments", "experiments", "Choose experiments by their settings and results."),
    "promote": ("deepseek_ops.cli.promote", "promote", "Open the merge of the experiment that won."),
    "diff": ("deepseek_ops.cli.diff", "diff", "Say what moved between two results, and if it explains their metrics."),
    "demo": ("deepseek_ops.cli.demo", "demo", "Run the main job on real servers, from a git push to a deployed model."),
    "run": (
        "deepseek_ops.cli.jobs",
        "run",
        "Start a job on any engine, without Airflow; JSON on stdout.",
    ),
    "status": ("deepseek_ops.cli.jobs", "status", "Show a job, or all of them."),
    "logs": ("deepseek_ops.cli.jobs", "logs", "Print what a job has logged, or its events; --follow stays with it."),
    "top": ("deepseek_ops.cli.top", "top", "Watch all jobs live: step, loss, speed, remaining time, machines."),
    "checkpoint-now": ("deepseek_ops.cli.jobs", "checkpoint_now", "Let a running training write a checkpoint."),
    "rewind": ("deepseek_ops.cli.jobs", "rewind", "Let a running training go back, leaving out what came since."),
    "stop": ("deepseek_ops.cli.jobs", "stop", "Let a job checkpoint and end; without a job, end a kept demo."),
}
"""Name -> module, function, help: a command's module is imported when it is called, not when another one is."""
GROUPS = {
    "data": ("deepseek_ops.cli.data", "data_app", "Dataset versions."),
    "lfs": ("deepseek_ops.cli.lfs", "app", "Git LFS: agent, server, tokens, fetching, migration."),
    "weights": ("deepseek_ops.cli.weights", "app", "What a weight file holds, and what changed between two."),
    "registry": ("deepseek_ops.cli.registry", "app", "Model versions, aliases, verification."),
}


def build(arguments: list[str]) -> typer.Typer:
    """Return the command line with the parts that ``arguments`` need."""
    app = typer.Typer(
        name="deepseek-ops",
        help="Train, release and operate DeepSeek-family models.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def _root() -> None:
        """Train, release and operate DeepSeek-family models."""

    wanted = next((word for word in arguments if not word.startswith("-")), "")
    for name, (module, function, help_text) in COMMANDS.items():
        command = getattr(importlib.import_module(module), function) if name == wanted else _placeholder
        app.command(name, help=help_text)(command)
    for name, (module, attribute, help_text) in GROUPS.items():
        group = getattr(importlib.import_module(module), attribute) if name == wanted else typer.Typer()
        app.add_typer(group, name=name, help=help_text)
    return app


def main() -> None:
    """Run the command line; an error of ours is one line per problem, never a traceback."""
    try:
        build(sys.argv[1:])()
    except DeepSeekOpsError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"{line}\n")
        sys.exit(1)


def _placeholder() -> None:
    """Stand for a command that was not asked for: it is listed by ``--help`` and never called."""


if __name__ == "__main__":
    main()
