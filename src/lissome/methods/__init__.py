"""The methods: one file per published system, in a folder named by what the user gets."""
