"""Language models: requests and replies, how they are asked, and the clients and engines."""
