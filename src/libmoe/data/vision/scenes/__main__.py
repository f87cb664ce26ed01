"""``python -m libmoe.data.vision.scenes OUT --split train --number 300``: conversations about scenes as files."""

from __future__ import annotations

import argparse
import sys

from libmoe.core.errors import LibMoEError
from libmoe.data.vision.scenes import SIZE, TASKS, SceneConversations, export
from libmoe.data.vision.scenes.conversations import CAPTIONS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m libmoe.data.vision.scenes", description=__doc__)
    parser.add_argument("out", help="folder that gets conversations.json and images/")
    parser.add_argument("--split", default="train", help="train or validation")
    parser.add_argument("--number", type=int, default=300, help="rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=SIZE, help="pixels of an image along both axes")
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="what is asked about; all by default")
    parser.add_argument("--captions", default="none", choices=CAPTIONS, help="describe each image, alone or last")
    given = vars(parser.parse_args())
    out = given.pop("out")
    try:
        print(export(SceneConversations(**given), out))
    except LibMoEError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
