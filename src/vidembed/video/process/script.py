"""The script of a decoding process. Run by path, so that nothing is imported that the decoder does not need.

Its one argument is the JSON of `vidembed.video.process.serve.Settings`; requests come on standard input and answers go
to what was standard output, to which native code may print no more.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> int:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    root = str(Path(__file__).resolve().parents[3])
    if root not in sys.path:
        sys.path.insert(0, root)  # the package that the parent has
    try:
        from vidembed.video.process.serve import Settings, serve  # noqa: PLC0415 - its failure is an answer

        settings = Settings(**json.loads(sys.argv[1]))
    except Exception as error:  # noqa: BLE001 - the parent says it
        answers.write(json.dumps({"failed": f"{type(error).__name__}: {error}"[:1000]}).encode() + b"\n")
        answers.flush()
        return 1
    serve(sys.stdin.buffer, answers, settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
