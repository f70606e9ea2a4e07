"""Recovery attacks: what brings forgotten images back. One file an attack, and `registry` with the table of them."""
