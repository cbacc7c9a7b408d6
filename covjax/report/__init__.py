"""What people look at: logs, tables, figures, and the page that holds them."""
