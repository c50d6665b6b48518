"""Dataset rows become records of the pipeline: `sampler.sample` reads `sources.read_rows`."""
