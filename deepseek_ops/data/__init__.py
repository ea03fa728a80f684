"""Dataset versions: manifests, packs, snapshots, splits and checks over an ObjectStore."""
