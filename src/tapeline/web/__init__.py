"""What people and programs see of a pipeline in a browser or over HTTP: the dashboard, the live feed, the history, and the jobs' buttons.

One process serves all of it: `server` puts the parts together. `live` sends what arrives, `overview` says how the pipeline is, `history`
reads the stores, `access` decides who may do what.
"""
