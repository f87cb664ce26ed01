"""``python -m libmoe.data.vision.tasks``: where lmms-eval finds the tasks of scenes."""

from __future__ import annotations

import sys

from libmoe.core.errors import LibMoEError
from libmoe.data.vision.tasks import scene_task_dir

if __name__ == "__main__":
    try:
        print(scene_task_dir())
    except LibMoEError as error:
        sys.exit(str(error))
