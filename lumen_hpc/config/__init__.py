"""How a run is described: settings, site profiles, and how both are resolved, checked and saved."""

import sys

# OmegaConf imports attrs for classes of its kind, where it is installed. We have none: 7 % of a command's imports.
sys.modules.setdefault("attr", None)  # type: ignore[arg-type]
import omegaconf  # noqa: E402, F401

if sys.modules["attr"] is None:
    del sys.modules["attr"]
