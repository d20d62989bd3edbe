"""Command lines out of frozen dataclasses, by absl's flags.

A program is a dataclass of its settings and a function that takes one:

    @dataclasses.dataclass(frozen=True)
    class Config:
        epochs: int = cli.flag(30, "Passes over the training data.", group="Training")

    def run(config): ...

    if __name__ == "__main__":
        cli.run(Config, run)

Flags live in a FlagValues of their own: importing a program defines none, and two programs can
run in one process.
"""

import dataclasses
import io
import json
import os
import pathlib
import signal
import sys
import textwrap
import types
import typing
from collections.abc import Callable

from absl import flags

from tfmp import errors


def flag(default, text, *, group="Run", choices=None, positional=False, short=None):
    """A dataclass field that is a flag.

    Args:
        default: Default value: int, float, str, bool, a tuple of these, or None.
        text: One sentence for `--help`, with the unit where there is one.
        group: Heading under which `--help` lists it.
        choices: The values allowed, of a `str` field, such as the keys of a dict; a `Literal`
            field brings its own.
        positional: Whether a word without a name is this flag's value, and all such words are a
            tuple's; of one field at most.
        short: A letter that is short for the name, of a number or string.

    Returns:
        A `dataclasses.field`.
    """
    metadata = {
        "text": text,
        "group": group,
        "choices": choices and tuple(choices),
        "positional": positional,
        "short": short,
    }
    return dataclasses.field(default=default, metadata=metadata)


def default(config_type, name, value):
    """The flag of a config's parent with another default value.

    Args:
        config_type: The parent, a dataclass of flags.
        name: Name of its field.
        value: The new default.

    Returns:
        A `dataclasses.field`.
    """
    metadata = config_type.__dataclass_fields__[name].metadata
    return dataclasses.field(default=value, metadata=metadata)


def prepare():
    """Prepares the process for TensorFlow, before it and Keras are imported.

    Quiets TensorFlow's start-up messages unless TF_CPP_MIN_LOG_LEVEL is set. Ends the program
    with one line and status 2 if Keras is set to another backend: Keras itself would fail with a
    traceback where that backend is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    backend = os.environ.get("KERAS_BACKEND")
    if not backend:
        home = pathlib.Path(os.environ.get("KERAS_HOME") or pathlib.Path.home() / ".keras")
        try:
            backend = json.loads((home / "keras.json").read_text()).get("backend")
        except (OSError, ValueError, AttributeError):
            backend = None
    if backend not in (None, "tensorflow"):
        leave(
            errors.UserError.exit_status,
            f"tfmp runs on Keras' tensorflow backend only. Received: {backend!r} (KERAS_BACKEND or "
            "keras.json). Run with KERAS_BACKEND=tensorflow.",
        )


def run(config_type, main, argv=None, program=None):
    """Parses a command line into a config, calls `main(config)` and ends the process.

    Ends with the exit status of the error that `main` raised (see `tfmp.errors`): the errors of
    ours as one line on stderr, anything else with its traceback.

    Args:
        config_type: Frozen dataclass; its fields are made by `flag`.
        main: Function of one config.
        argv: Words after the program's name; by default `sys.argv[1:]`.
        program: What a user types to start it; by default `python -m` and `main`'s module.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Whatever a class or a folder is called, printing it must not end the program.
        sys.stdout.reconfigure(errors="backslashreplace")
    module = sys.modules[main.__module__]
    program = program or _program_name(module)
    argv = sys.argv[1:] if argv is None else argv
    if any(word.lstrip("-") in ("help", "helpfull", "h", "?") for word in argv if word[:1] == "-"):
        print(help_text(config_type, program, module.__doc__ or ""))
        return
    try:
        config = parse(config_type, argv)
    except ValueError as error:
        leave(errors.UserError.exit_status, f"{error} (`{program} --help` lists the flags.)")
    try:
        main(config)
    except errors.TfmpError as error:
        at_once = isinstance(error, errors.OutOfMemoryError) or _others_wait()
        leave(error.exit_status, str(error), at_once=at_once)
    except KeyboardInterrupt:
        message = "interrupted; what was saved before is kept"
        leave(128 + signal.SIGINT, message, at_once=_others_wait())


def _others_wait():
    """Whether this process is one of several workers in training."""
    workers = sys.modules.get("tfmp.workers")  # which imports TensorFlow
    return workers is not None and workers.is_joined()


def parse(config_type, argv):
    """A config from the words of a command line.

    Args:
        config_type: Frozen dataclass; its fields are made by `flag`.
        argv: List of words such as `--epochs=3`; `--flagfile=FILE` is read in its place, so that
            flags behind it win. One word more where a field is positional, any number where it
            is a tuple.

    Returns:
        An instance of `config_type`.

    Raises:
        ValueError: A word that is no flag, or a value that its type or range does not allow.
    """
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow a word
    for field, kind in _fields(config_type):
        _define(field, kind, values)
    positional, several = _positional(config_type)
    try:
        rest = values(["tfmp", *argv])[1:]
        if rest and positional and not values[positional].present:
            # As a list, whose items may have commas.
            values[positional].parse(rest[:] if several else rest[0])
            rest = [] if several else rest[1:]
    except flags.Error as error:
        raise errors.UserError(
            f"{' '.join(str(error).split()).removeprefix('ERROR:: ')}."
        ) from None
    except UnicodeDecodeError as error:
        raise errors.UserError(f"Expected a --flagfile in UTF-8. Received: {error}.") from None
    if rest:
        allowed = f"one {positional.upper()} and " if positional else ""
        raise errors.UserError(
            f"Expected {allowed}flags such as --name=value only. Received: {rest[0]!r}."
        )
    settings = {field.name: values[field.name].value for field, _ in _fields(config_type)}
    return config_type(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})


def help_text(config_type, program, doc=""):
    """The text that `--help` prints: the program's docstring, then its flags by group."""
    groups: dict[str, list[str]] = {}
    for field, kind in _fields(config_type):
        default = "none" if field.default is None else _as_word(field.default)
        sort = "|".join(_choices(field, kind) or (getattr(kind, "__name__", "list"),))
        text = f"{field.metadata['text']} (default: {default or repr('')})"
        short = field.metadata["short"]
        groups.setdefault(field.metadata["group"], []).append(
            f"  --{field.name}={sort}{f', -{short}' if short else ''}\n"
            + textwrap.fill(text, 92, initial_indent=" " * 6, subsequent_indent=" " * 6)
        )
    sections = [f"{group}:\n" + "\n".join(lines) for group, lines in groups.items()]
    positional, several = _positional(config_type)
    word = f"[{positional.upper()}{' ...' if several else ''}] " if positional else ""
    usage = f"Usage: {program} {word}[--flagfile=FILE] [--FLAG=VALUE ...]"
    return "\n\n".join([doc.strip(), usage, *sections])


def _fields(config_type):
    """(field, type) of each flag; the type of `X | None` is X."""
    hints = typing.get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        kind = hints[field.name]
        if typing.get_origin(kind) in (typing.Union, types.UnionType):
            (kind,) = [k for k in typing.get_args(kind) if k is not type(None)]
        yield field, kind


def _positional(config_type):
    """The flag that words without a name are for, or None, and whether it takes several."""
    for field, kind in _fields(config_type):
        if field.metadata.get("positional"):
            return field.name, typing.get_origin(kind) is tuple
    return None, False


def _choices(field, kind):
    literal = typing.get_origin(kind) is typing.Literal
    return typing.get_args(kind) if literal else field.metadata.get("choices")


def _define(field, kind, values):
    name, default, text = field.name, field.default, field.metadata["text"]
    if _choices(field, kind):
        flags.DEFINE_enum(name, default, _choices(field, kind), text, flag_values=values)
    elif typing.get_origin(kind) is tuple:
        parse_item = typing.get_args(kind)[0]
        flags.DEFINE(
            _TupleParser(parse_item),
            name,
            default if default is None else list(default),
            text,
            flag_values=values,
            serializer=flags.CsvListSerializer(","),
        )
    else:
        definers: dict[type, Callable] = {
            bool: flags.DEFINE_bool,
            int: flags.DEFINE_integer,
            float: flags.DEFINE_float,
            str: flags.DEFINE_string,
        }
        short = field.metadata.get("short")
        definers[kind](name, default, text, flag_values=values, short_name=short)


class _TupleParser(flags.ListParser):
    """Comma-separated values of one type."""

    def __init__(self, parse_item):
        super().__init__()
        self._parse_item = parse_item

    def parse(self, argument):
        return [self._parse_item(word) for word in super().parse(argument)]


def _as_word(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)


def _program_name(module):
    spec = getattr(module, "__spec__", None)
    return f"python -m {spec.name}" if spec else pathlib.Path(sys.argv[0]).name


def leave(status, message, at_once=False):
    """Ends the process with one line on stderr.

    Args:
        status: Exit status.
        message: What went wrong, or with status 0, why there was nothing to do.
        at_once: Leave without freeing anything: once a GPU's memory has run out, TensorFlow 2.21
            aborts with a stack trace while it frees its variables; while other workers train, it
            waits for them.
    """
    sys.stdout.flush()
    kind = "error" if status else "note"
    print(f"{kind}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    if at_once:
        os._exit(status)
    sys.exit(status)
