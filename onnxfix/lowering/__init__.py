"""What rules of one family share: how an operator is written with the operators a target has."""
