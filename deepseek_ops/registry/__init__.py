"""Model versions, bundles and aliases in the object store."""
