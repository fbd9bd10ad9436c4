"""Vision models by the name that people use: one Model, a file for each library, and one for names. What a model's
inside looks like, and how it is decomposed, is not known here."""
