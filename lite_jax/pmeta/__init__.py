"""p-Meta: few-shot adaptation in little memory, and its export to devices."""
