"""Numbers with intervals: means by question, clustered rates, resampling of questions."""
