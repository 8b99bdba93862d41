"""What tests share: builders, stand-ins and checks. No test file imports from another."""
