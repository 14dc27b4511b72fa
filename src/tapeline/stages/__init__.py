"""The stages of the pipeline, one process each: ingest, normalize, store, ledger."""
