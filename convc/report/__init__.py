"""What people read: tables and profiles."""
