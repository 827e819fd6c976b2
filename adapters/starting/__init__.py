"""What is known of coefficients before any merge is evaluated: from how experts were trained, how they answer, what
they compute. Nothing here evaluates a merge or knows of studies."""
