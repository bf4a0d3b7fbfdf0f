"""The arguments of a run as args.json and its checkpoints hold them, and what of them may change.

    resumed_args(parser, argv, folder)      # those of the run, with what this command line changes
    result_arguments(args)                  # what its result depends on: kept in each checkpoint

args.json is a file that people edit, so each value goes through its flag's own type and choices as
if it had been typed, and what the result depends on is compared with the checkpoint.
"""

import argparse
import json
import os
from argparse import BooleanOptionalAction
from pathlib import Path

from common.program import UserError
from training.runfolder import check_record, launch_id, read_record

# What a resumed run may change: nothing that its result depends on beyond rounding. Which slices
# there are, their labels and subsets is compared by itself: see `runfolder.check_same_data`.
HARMLESS = set(
    "audit audit_rounds cache_dir compile data_dir device epochs grad_accumulation labels "
    "output_dir resume save_every_steps tensorboard workers".split()
)
LOCATIONS = ("cache_dir", "data_dir", "labels", "split_file")  # seen from where the run was started


def plain(value: object) -> object:
    """An argument as JSON and checkpoints hold it."""
    if isinstance(value, list | tuple):
        return list(map(plain, value))
    return str(value) if isinstance(value, Path) else value


def result_arguments(args: argparse.Namespace) -> dict:
    """What the result of a run depends on, as plain values."""
    # Each part of a batch draws its own dropout.
    dropout = args.ff_dropout or args.attention_dropout
    harmless = HARMLESS - ({"grad_accumulation"} if dropout else set())
    if args.schedule.endswith("cosine"):  # it ends where the last epoch does
        harmless = harmless - {"epochs"}
    if args.folds:  # all of them, or one by one
        harmless = harmless | {"fold"}
    arguments = {name: plain(value) for name, value in vars(args).items() if name not in harmless}
    if args.split_file:  # the same file, wherever it is named from
        arguments["split_file"] = os.path.abspath(args.split_file)
    return arguments


# ---- args.json -----------------------------------------------------------------------------------


def own_run(folder: Path) -> Path | None:
    """The folder, if the torchrun that started this process has begun a run in it."""
    try:
        record = read_record(folder)
    except UserError:
        return None
    return folder if "launch" in record and record["launch"] == launch_id() else None


def resumed_args(
    parser: argparse.ArgumentParser, argv: list[str] | None, folder: Path
) -> argparse.Namespace:
    """The arguments of the run in `folder`, with those of this command line that may differ."""
    try:
        record = read_record(folder)
        check_record(folder, record)
        parser.set_defaults(**read_saved(parser, record, folder / "args.json"))
    except UserError as error:
        parser.error(str(error))
    run = parser.parse_args(["--resume", str(folder)])
    run.output_dir = folder
    args = parser.parse_args(argv)
    args.output_dir = args.output_dir or folder
    before, now = result_arguments(run), result_arguments(args)
    if os.path.abspath(args.output_dir) != os.path.abspath(folder):
        before["output_dir"], now["output_dir"] = str(folder), str(args.output_dir)
    changed = [name for name in now if name in before and now[name] != before[name]]
    if changed:
        told = [
            f"{as_typed(parser, name, now[name])} (the run was started "
            f"{started_with(parser, name, before[name])})"
            for name in changed
        ]
        ends = f", and --schedule {run.schedule} ends where its --epochs do"
        parser.error(
            f"{', '.join(told)}: can't be changed on the way, because the result would"
            f"{ends if 'epochs' in changed else ''}; start a new run"
        )
    args.resume = args.output_dir = folder
    return args


def read_saved(parser: argparse.ArgumentParser, record: dict, path: Path) -> dict:
    """The arguments in args.json, as the parser makes them. Raises UserError with name and value.

    Paths are those that were typed, seen from here.
    """
    actions = {action.dest: action for action in parser._actions}
    arguments = {}
    for name, value in record["arguments"].items():
        if name not in actions:
            raise UserError(f"{path}: {name} is no argument of train.py; remove it")
        try:
            arguments[name] = as_parsed(actions[name], value)
        except argparse.ArgumentTypeError as error:
            raise UserError(f"{path}: {name}: {error}") from error
    started_in = record.get("directory", os.getcwd())
    for name in LOCATIONS:
        if arguments.get(name):
            arguments[name] = from_here(arguments[name], started_in)
    return {**arguments, "resume": None, "output_dir": None}


def as_parsed(action: argparse.Action, value: object) -> object:
    """What a flag makes of a value of args.json. Raises ArgumentTypeError if it never takes it."""
    got = f"got {json.dumps(value)[:100]}"
    if value is None and action.default is None:
        return None
    if isinstance(action, BooleanOptionalAction) or action.nargs == 0:
        if not isinstance(value, bool):
            raise argparse.ArgumentTypeError(f"expected true or false, {got}")
        return value
    words = value if action.nargs else [value]
    if not (isinstance(words, list) and words) or action.nargs not in (None, "+", len(words)):
        count = "1 or more" if action.nargs == "+" else action.nargs
        raise argparse.ArgumentTypeError(f"expected a list of {count}, {got}")
    parsed = []
    for word in words:
        if isinstance(word, bool) or not isinstance(word, str | int | float):
            raise argparse.ArgumentTypeError(f"expected text or a number, {got}")
        argument = (action.type or str)(str(word))
        is_text = isinstance(argument, str | Path)
        if is_text != isinstance(word, str) or (is_text and "\0" in word):
            raise argparse.ArgumentTypeError(f"expected {'text' if is_text else 'a number'}, {got}")
        if action.choices and argument not in action.choices:
            choices = ", ".join(map(str, action.choices))
            raise argparse.ArgumentTypeError(f"expected one of {choices}, {got}")
        parsed.append(argument)
    return parsed if action.nargs else parsed[0]


def from_here(path: object, directory: str) -> object:
    """A path, or a list of them, that was named in a directory, as it is named in this one."""
    if isinstance(path, list):
        return [from_here(each, directory) for each in path]
    if os.path.isabs(path) or directory == os.getcwd():
        return path
    return type(path)(os.path.relpath(os.path.join(directory, path)))


# ---- flags in messages ---------------------------------------------------------------------------


def as_typed(parser: argparse.ArgumentParser, name: str, value: object) -> str:
    """An argument as it is typed: image_size, [76, 86] -> --image-size 76 86; "" if it is not."""
    flags = next(action for action in parser._actions if action.dest == name).option_strings
    if value is None or (value is False and not flags[-1].startswith("--no-")):
        return ""
    if isinstance(value, bool):
        return flags[-1] if value is False else next(f for f in flags if f.startswith("--"))
    words = value if isinstance(value, list | tuple) else [value]
    return " ".join([next(f for f in flags if f.startswith("--")), *map(str, words)])


def started_with(parser: argparse.ArgumentParser, name: str, value: object) -> str:
    typed = as_typed(parser, name, value)
    return f"with {typed}" if typed else "without it"
