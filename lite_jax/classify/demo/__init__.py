"""A local web page on which a person teaches classes by dropping photographs."""
