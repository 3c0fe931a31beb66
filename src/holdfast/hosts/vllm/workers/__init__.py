"""Worker processes: noticing that one is gone, giving its rank a new one, keeping one ready."""
