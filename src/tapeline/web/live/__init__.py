"""The live feed: what arrives in the stream, sent to any number of clients, each with its own symbols and kinds.

A thread reads the topics and cuts them into windows of some milliseconds (`window`). The hub gives each window to its clients (`hub`). A
client has a bounded queue: if it does not keep up, it gets the latest values instead of every event, and is told how many events it did
not get (`client`). Every message carries a position (`position`), with which a client continues after its connection was lost, even if
the server was started again meanwhile.
"""
