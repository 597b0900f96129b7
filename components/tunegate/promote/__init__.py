"""Puts what was judged into the registry and moves an alias to it. Only a PASS on these very bytes gets through."""
