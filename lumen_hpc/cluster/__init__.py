"""From a plan to verified shards: profiles, the stage graph, submission, manifests, status and repair."""
