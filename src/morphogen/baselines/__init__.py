"""What users would train instead of an automaton, behind the same contracts: U-Nets and a variational automaton."""
