"""Language models: every stage calls them through `musiccli.llm.client.Client`."""
