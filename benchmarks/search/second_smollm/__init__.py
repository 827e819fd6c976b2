"""Three LoRAs of SmolLM2-135M whose average keeps 30 to 80% of each skill; made with examples/smollm's programs."""

import sys
from pathlib import Path

FOLDER = Path(__file__).parent
# Its programs are scripts that import each other by their bare names.
sys.path.append(str(FOLDER.parents[2] / "examples/smollm"))
