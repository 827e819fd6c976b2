"""Make an environment that has the packages of the one that this runs in and the peers that are in none of its extras:
``python -m benchmarks.search.peer_environment FOLDER``; then ``FOLDER/bin/python -m benchmarks.search run ...``.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

PEERS = ("ax-platform==1.3.1", "jax==0.10.2", "numpyro==0.22.0", "qpots==2.2.1")
"""JAX and NumPyro sample the hyper-parameters of Ax's ``quality``."""
WITHOUT_THEIR_PINS = ("HEBO==0.3.6", "disjoint-set==0.9.0")
"""HEBO asks for a numpy below 1.25, which none of the others runs with."""


def main() -> None:
    folder = Path(sys.argv[1])
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin/python"
    place = subprocess.check_output(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], text=True
    )
    # What is there stays as it is: pip sees those packages and adds the missing ones. A plain path would leave out
    # packages that are installed editable, as mergefront is: their own .pth files would not be read.
    packages = sysconfig.get_paths()["purelib"]
    (Path(place.strip()) / "main.pth").write_text(f"import site; site.addsitedir({packages!r})\n")
    install = [str(python), "-m", "pip", "install", "-c", "constraints.txt"]
    subprocess.run([*install, *PEERS], check=True)
    subprocess.run([*install, "--no-deps", *WITHOUT_THEIR_PINS], check=True)


if __name__ == "__main__":
    main()
