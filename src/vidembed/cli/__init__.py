"""The command line: `vidembed`.

Exit codes: 0 done, 1 nothing could be done, 2 misuse, 3 a named path vanished, 130 interrupted. The commands import
what they need when they run, so that `--help` does not wait for torch.
"""

from __future__ import annotations

from collections.abc import Callable

import typer

from vidembed.cli import adapt, caption, clip, demo, evaluate, index, info, model, options, search, serve

__all__ = ["app", "main"]

app = main = typer.Typer(
    name="vidembed",
    cls=options.ErrorsToExitCodes,
    callback=options.global_options,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "index": index.index_command,
    "search": search.command,
    "clip": clip.command,
    "serve": serve.command,
    "caption": caption.command,
    "info": info.command,
    "build": model.build_command,
    "check": model.check_command,
    "layers": model.layers_command,
    "train": model.train_command,
    "adapt": adapt.command,
    "calibrate": model.calibrate_command,
    "evaluate": evaluate.evaluate_command,
    "compare": evaluate.compare_command,
    "mteb": evaluate.mteb_command,
    "reproduce": evaluate.reproduce_command,
    "demo": demo.command,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(options.takes_model_options(_command))
