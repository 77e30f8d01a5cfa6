"""The matrix products of training in the number formats that hardware offers, behind one interface (`products`)."""
