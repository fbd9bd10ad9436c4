"""EX2: the reward, training around TRL, descriptions, what an inspector is asked and what its answers come to. Models
and language models are loaded elsewhere (utils/models, utils/language)."""
