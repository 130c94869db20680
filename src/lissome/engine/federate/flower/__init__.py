"""Federation over Flower: the same parcels as its Messages, in a simulation or between machines.

Only the public Message API is used (`flwr.app`, `flwr.clientapp`, `flwr.serverapp`), so that the same app runs under
``flwr run``, and Flower's own strategies can drive it when all clients train the whole model.
"""
