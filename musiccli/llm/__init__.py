"""The one door to language models: every call of every stage goes through `client`."""
