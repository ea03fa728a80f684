"""Training code of the tiny DeepSeek: what the pipeline file names is looked up here."""
