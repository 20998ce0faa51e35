"""Does the norm of a query predict how sharply its head attends?"""
