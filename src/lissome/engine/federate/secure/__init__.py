"""Secure aggregation: the server learns the sum of the clients' updates and no single one.

Bonawitz et al. 2017 (doi 10.1145/3133956.3133982), on a graph of neighbours instead of all pairs (SecAgg+; Bell et al.
2020, doi 10.1145/3372297.3417885). In a round

1. each client makes two keys and sends their public halves;
2. it shares the seed of a mask of its own, and its secret half, among its neighbours, so that enough of them can
   restore either, and encrypts each share for the neighbour it is for;
3. it sends its update in whole numbers, plus its own mask, plus or minus a mask with each neighbour, modulo 2³²: masks
   of pairs cancel in the sum;
4. neighbours tell the shares of the own masks of those who answered, and of the keys of those who did not, never both.

It protects against a server that is curious but keeps to the protocol. Clients that drop out after step 2 cost nothing
while enough neighbours stay.
"""
