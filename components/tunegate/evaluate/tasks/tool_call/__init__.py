"""Tool calls: is the answer a call of a known function, and is it a right one?"""
