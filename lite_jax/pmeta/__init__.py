"""p-Meta: adaptation whose memory is learned to be small, and its deployment."""
