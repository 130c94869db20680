"""Any network, without annotations: its couplings are read off one recorded forward pass.

`recorder` runs the network on shapes alone and follows every channel through every operation; `rules` says what each
operation does to channels; `groups` turns channels that must go together into dims; `depth` finds what can be skipped;
`verify` lets a network with random weights show that what was found holds; `reader` puts an `Anatomy` together.
"""
