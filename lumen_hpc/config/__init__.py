"""How a run is described: settings, site profiles, and how both are resolved, checked and saved."""
