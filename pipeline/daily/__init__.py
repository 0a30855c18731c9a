"""What people do after the first run: look after the machine and the cache, talk to a model, take it elsewhere."""
