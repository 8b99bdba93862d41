"""What is written from data: pages of docs/, kept current by tests."""
