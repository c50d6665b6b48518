"""Bradley-Terry reward models: conversations go in, and one number comes out for each."""
