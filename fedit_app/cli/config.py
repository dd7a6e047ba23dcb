"""`fedit config`: every run-config key with its meaning."""

from __future__ import annotations

from fedit_app.cli.output import Format, FormatOption, write


def config(form: FormatOption = Format.AUTO) -> None:
    """List every run-config key with its default, range and meaning."""
    from fedit_app.config.documentation import key_table

    write({"keys": key_table()}, form)
