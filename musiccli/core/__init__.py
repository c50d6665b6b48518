"""What every room stands on: errors, records, JSONL, the store on disk, progress, figures, pages and processes."""
