"""What heads are called, by attributes: sets of texts that exclude each other. One way of naming a file, each with one
function, `scores(run, texts, columns, seed, again)`, of one signature; the other files are what they stand on. `texts`
are the embeddings [m, d] of each attribute's texts, `again` those of the same texts in another wording."""

METHODS = ("majority", "shuffled", "textspan", "textspan_centred", "head_pursuit", "sith", "component_scores",
           "zero_shot_shares", "partial_shares", "soft_shares", "reliable_shares",
           "reliable_soft_shares")
