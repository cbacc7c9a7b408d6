"""What a user typed, parsed; what is wrong with it, said in one line."""

from absl import flags

from covjax.errors import UsageError


def parse(argv: list[str], config: flags.FlagHolder) -> list[str]:
    """Parses the command line.

    Args:
      argv: its words, the program first.
      config: the flag that names the config.

    Returns:
      The program alone.

    Raises:
      UsageError: naming the flag, field or file at fault.
    """
    try:
        rest = flags.FLAGS(argv)
        _ = config.value and config.value.keys()  # says now if the file is missing
    except AttributeError as error:
        said = str(error).replace("\\n", ". ").replace("\\", "").strip("'\"")
        name, _, more = said.partition("'")
        raise UsageError(f"no such config field: '{name}'{more}") from None
    except (flags.Error, ValueError, OSError, TypeError) as error:
        # A config file that raises comes with a traceback: its last line says why.
        last = str(error).strip().splitlines()[-1].strip()
        _, found, name = last.partition("[Errno 2] No such file or directory: ")
        if found:
            told = "give the command in the project's folder, or the whole path"
            raise UsageError(f"no such config: {name}; {told}") from None
        raise UsageError(last.removeprefix("ValueError: ")) from None
    if len(rest) > 1:
        raise UsageError(f"not a flag: {rest[1]}")
    return rest
