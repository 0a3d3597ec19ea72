"""One file per word of the method; the only folder that joins the role folders to Ray."""
