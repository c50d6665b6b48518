"""Bradley-Terry reward models: conversations in, one number each out; loading, batching, the loss, saving."""
