"""Every kind of source as one stream of batches: text columns with line numbers, and the rows that were refused."""
