"""Theory: the weight matrices themselves, against exact ALiBi and the paper's bounds."""
