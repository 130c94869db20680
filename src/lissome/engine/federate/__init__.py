"""Federation: clients whose devices differ train the sub-network that fits them; data never moves.

The life of a round, and the file that knows it:

1. `rounds` asks who is there (`profile`), samples, and lets the `program` of a method assign a Subnet to each client,
   usually through `planner`, within the budget of its device.
2. The tensors that the Subnet keeps (`layout`) are cut from the global ones, encoded (`codec`), wrapped (`parcel`),
   counted (`ledger`) and sent over a `link`: to clients in this process with a virtual clock (`local`), or over Flower
   (`flower`) to a simulation or to other machines.
3. A client (`client`) checks what it is sent, trains with the shared loop (`training`), keeps its private part on its
   own disk (`store`) and answers.
4. The answer is checked (`guard`) and measured beside the others (`lengths`), what is wrong with it is written down
   (`audit`), and what is right is merged (`merge`) in the order of the clients' names, whatever the order of arrival
   (`shelf`). An `outer` optimizer may then decide how far the global tensors move.
5. Everything is written to a checkpoint; a server that is killed continues with the next round, and one whose round
   gave nothing that can be used takes the last checkpoint back.

A method is a `program` for the server and one for the client; nothing here knows any of them.
"""
