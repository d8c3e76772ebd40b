"""
Compares the lower bounds in pyproject.toml with the versions that are installed.

`.ci/versions` runs it after it installed the lowest versions: a bound that another package raises was not tried. The
arguments are the names of packages to leave out.
"""

import sys
from importlib.metadata import requires, version

from packaging.requirements import Requirement
from packaging.version import Version


EXTRAS = ("quickstart", "test")

differences = []
for requirement in map(Requirement, requires("trl-rlp")):
    is_installed = requirement.marker is None or any(requirement.marker.evaluate({"extra": name}) for name in EXTRAS)
    if is_installed and requirement.name not in sys.argv[1:]:
        lowest = next(part.version for part in requirement.specifier if part.operator == ">=")
        installed = Version(version(requirement.name)).public  # 2.7.0, and not 2.7.0+cpu
        if Version(installed) != Version(lowest):
            differences.append(f"{requirement.name}>={lowest}, and {installed} was installed")
if differences:
    sys.exit("Raise these lower bounds in pyproject.toml to what was installed:\n  " + "\n  ".join(differences))
