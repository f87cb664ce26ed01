"""The ``libmoe`` command."""

from __future__ import annotations

import sys

INTERRUPTED = "interrupted; run the same command again to go on from the last checkpoint"


def main() -> None:
    """Run the command line; a user's mistake ends in one clear line and a non-zero exit code."""
    import typer

    from libmoe.cli.app import app
    from libmoe.cli.output import fail
    from libmoe.core.errors import LibMoEError

    try:
        code = app(standalone_mode=False)
    except LibMoEError as error:
        sys.exit(fail(str(error)))
    except KeyboardInterrupt:
        sys.exit(fail(INTERRUPTED, code=130))
    except OSError as error:
        if error.errno != 28:
            raise
        sys.exit(
            fail(f"no space left on the disk of {error.filename or 'the output folder'}; free some and rerun")
        )
    except typer.Abort:
        sys.exit(fail(INTERRUPTED, code=130))
    except Exception as error:
        # Usage errors: typer's own class in newer releases, click's in older ones; both know how to show themselves.
        if not (hasattr(error, "show") and hasattr(error, "exit_code")):
            raise
        error.show()
        sys.exit(error.exit_code)
    sys.exit(code or 0)
