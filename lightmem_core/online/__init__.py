"""What a server does with a store: messages in, memories out. No Ray, no HTTP."""
