"""A local web page that learns classes from dropped photographs."""
