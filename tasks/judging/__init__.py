"""A language model as judge that has to earn its vote, and blinded pairs for people."""
