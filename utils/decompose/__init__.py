"""The exact decomposition of a model's representations into terms of components and tokens. Callers use the Decomposer
and never ask which mechanism served; nothing is stored or interpreted here."""
