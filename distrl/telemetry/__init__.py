"""Where the seconds go and how the run is seen: spans, mergeable metrics, sinks, console, report."""
