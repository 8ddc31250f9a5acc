"""What is trained: three block families in one skeleton. Tensors to tensors; imports no other stage."""
