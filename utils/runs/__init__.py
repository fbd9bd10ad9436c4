"""What a decomposition leaves on disk: components, the terms of a data set with their labels and manifest, how they are
written and how they are read. How terms are made is in utils/decompose, what they say in utils/analysis."""
