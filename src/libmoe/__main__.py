"""``python -m libmoe`` is the ``libmoe`` command."""

from libmoe.cli import main

if __name__ == "__main__":
    main()
