"""What an audit found, for readers: verdict, tables, figures, one page."""
