"""The search for what triggers a suspect: words and phrases are inserted into clean rows, and their effect measured."""
