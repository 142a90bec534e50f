"""Launching on a cluster: Ray's Jobs service, recovery of a run from lost nodes, manifests for KubeRay."""
