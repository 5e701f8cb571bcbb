"""A guest with disk images: writes whole zones of a sparse file set, each once, in random order.

    python -m tests.support.image_writer FOLDER SET_MIB WRITE_MIB SEED

Every sixteenth zone is followed by fsync. The last line says how many MiB were written.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

ZONE = 1 << 20
FILE_MIB = 1024
"""Of one image."""
_SYNC_EVERY = 16


def main() -> None:
    """Write, until all is written."""
    folder, set_mib, write_mib, seed = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    folder.mkdir(exist_ok=True)
    dice = random.Random(seed)
    images = []
    for first in range(0, set_mib, FILE_MIB):
        image = os.open(folder / f"image{first // FILE_MIB}", os.O_RDWR | os.O_CREAT)
        size = min(FILE_MIB, set_mib - first) * ZONE
        if os.fstat(image).st_size != size:
            # Else an image that is not written is touched: after a cut it is compared whole (R14).
            os.ftruncate(image, size)
            os.fsync(image)
        images.append(image)
    written = 0
    for zone in dice.sample(range(set_mib), write_mib):
        image = images[zone // FILE_MIB]
        os.pwrite(image, dice.randbytes(ZONE), zone % FILE_MIB * ZONE)
        written += 1
        if written % _SYNC_EVERY == 0 or written == write_mib:
            os.fsync(image)
    for image in images:
        os.fsync(image)
    print(f"{written} MiB written", flush=True)


if __name__ == "__main__":
    main()
