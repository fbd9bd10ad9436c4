"""Language models: how they are loaded, how they generate, how a chat server is asked, how replies are read, and the
files that keep answers a line at a time. What is asked, and what the answers mean, is in utils/ex2."""
