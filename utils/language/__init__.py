"""Language models: how they are loaded, how they generate, how a chat server is asked, and how its answers are kept. What is
asked of them, and what the answers mean, is in utils/ex2."""
