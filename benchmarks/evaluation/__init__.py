"""What evaluation costs and what it is worth: racing, scoring throughput, false winners, item response theory."""
