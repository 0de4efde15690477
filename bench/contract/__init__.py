"""What components declare, and the registries that find them."""
