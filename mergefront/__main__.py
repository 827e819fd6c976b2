"""``python -m mergefront``: the same as the command ``mergefront``."""

from __future__ import annotations

from mergefront.cli import main

if __name__ == "__main__":
    main()
