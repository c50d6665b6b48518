"""What every other room uses: errors, records, JSONL, the store on disk, progress, processes."""
